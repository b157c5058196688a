#pragma once
#include <napi.h>

namespace rlhf::kernels {

/// Adds the class Model: a whole model on any backend and element type, run synchronously
/// (test/support/kernels-model.ts types it).
void defineModel(Napi::Env env, Napi::Object exports);

/// Adds runMlp: a small network, forward and backward, on the oracle (kernels_mlp.cc).
void defineMlp(Napi::Env env, Napi::Object exports);

}  // namespace rlhf::kernels
