#pragma once
#include <cstdint>
#include <string>

#include "model/model.h"

namespace rlhf {

/// Reads one tensor of a safetensors file into a parameter, converting it to the model's type. `offset` is the tensor's first byte in
/// the file; F32, F64, F16 and BF16 are known. The file is read, never mapped, so that a later change of it cannot crash a run.
/// Throws ERR_RLHF_IO when the file is shorter than it says, ERR_RLHF_WEIGHTS when a value is not finite.
void loadParameterFromFile(Model& model, const std::string& parameter, const std::string& path, int64_t offset,
                           int64_t count, DType type);

}  // namespace rlhf
