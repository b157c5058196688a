#include "simt/backend.h"

#include "cuda/kernels.h"

namespace rlhf::simt {

const Ops& ops() {
  static const Ops table = cuda::makeOps("simt", "emulated");
  return table;
}

}  // namespace rlhf::simt
