#include "cuda/plugin.h"

#include <cstdio>
#include <exception>

#include "core/error.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "ops/entry.h"

const rlhf::Ops* rlhf_cuda_ops() {
  static const rlhf::Ops table = rlhf::cuda::makeOps("cuda", "sm_80");
  return &table;
}

rlhf::Status rlhf_cuda_device(int32_t index, rlhf::Device** out, char* message, size_t messageBytes) {
  *out = nullptr;
  try {
    *out = rlhf::cuda::openDevice(index);
    return rlhf::kOk;
  } catch (const rlhf::Error& error) {
    std::snprintf(message, messageBytes, "%s", error.what());
    return rlhf::statusOf(error);
  } catch (const std::exception& error) {
    std::snprintf(message, messageBytes, "%s", error.what());
    return rlhf::kDeviceFailure;
  }
}

void rlhf_cuda_close_device(rlhf::Device* device) { rlhf::cuda::closeDevice(device); }
