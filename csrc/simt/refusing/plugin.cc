// A CUDA backend that cannot be used: what the addon, the library and the command line then say is tested with it where no GPU, driver or
// build is at fault. RLHF_REFUSAL has the status with which no device is opened and the words for it, "8 no driver", or "sources": the
// backend is then of another build.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/plugin.h"
#include "ops/entry.h"

namespace {

const char* refusal() {
  const char* text = std::getenv("RLHF_REFUSAL");
  return text ? text : "";
}

}  // namespace

const rlhf::Ops* rlhf_cuda_ops() {
  static rlhf::Ops table = {};
  table.abiHash = rlhf::abiHash() ^ (std::strcmp(refusal(), "sources") == 0 ? 1 : 0);
  return &table;
}

rlhf::Status rlhf_cuda_device(int32_t, rlhf::Device** out, char* message, size_t messageBytes) {
  *out = nullptr;
  char* words = nullptr;
  const long status = std::strtol(refusal(), &words, 10);
  std::snprintf(message, messageBytes, "%s", *words == ' ' ? words + 1 : words);
  return static_cast<rlhf::Status>(status);
}

void rlhf_cuda_close_device(rlhf::Device*) {}
