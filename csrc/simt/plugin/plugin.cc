// The emulator as the shared library that the addon opens for device "cuda": what the library, the trainers and the command
// line do on a GPU can then be tested where there is none. In a folder of its own, since the tests' addon opens the real one.

#include "cuda/plugin.h"

#include "simt/backend.h"

const rlhf::Ops* rlhf_cuda_ops() { return &rlhf::simt::apartOps(); }

rlhf::Status rlhf_cuda_device(int32_t, rlhf::Device** out, char*, size_t) {
  *out = rlhf::simt::openApartDevice();
  return rlhf::kOk;
}

void rlhf_cuda_close_device(rlhf::Device* device) { rlhf::simt::closeApartDevice(device); }
