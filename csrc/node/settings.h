#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "model/model.h"

// The settings of engine calls, read from JavaScript objects; lib/engine/native.ts types them. Both addons
// use these.

namespace rlhf::node {

/// "none", "gelu_tanh", "gelu", "tanh", "relu" or "silu"; else ERR_RLHF_CONFIG.
Activation toActivation(const std::string& name);
ModelConfig toModelConfig(const Napi::Object& object);
/// "float32", "float16" or "bfloat16": how weights are kept; else ERR_RLHF_UNSUPPORTED.
DType toStorageType(const std::string& name);
/// What products are computed in: one of those, or "bfloat16x3".
DType toComputeType(const std::string& name);
AdapterConfig toAdapterConfig(const Napi::Object& object);
HeadConfig toHeadConfig(const Napi::Object& object);
Batch toBatch(const Napi::Object& object);
/// All but `reference`, which is a pass.
ForwardOptions toForwardOptions(const Napi::Object& object);
GenerateOptions toGenerateOptions(const Napi::Object& object);
std::vector<std::vector<int32_t>> toPrompts(Napi::Value value);
/// [{ name, shape, group, trainable }]
Napi::Value toParameterList(Napi::Env env, const std::vector<ParameterInfo>& parameters);
/// [{ module, inputs, outputs, transposed, attention }]
Napi::Value toLinearLayerList(Napi::Env env, const std::vector<LinearLayerInfo>& layers);
/// Bytes by the uses' names.
Napi::Value toMemoryObject(Napi::Env env, const MemoryBytes& bytes);
Napi::Value toGenerations(Napi::Env env, const std::vector<Generation>& generations);

}  // namespace rlhf::node
