#include "cuda/hopper/matmul.h"

#include "cuda/hopper/products.cuh"

namespace rlhf::cuda {
namespace {

/// The narrower tile where the wider ones would leave multiprocessors idle. A sum's order is the same in both.
template <bool kOuterA, bool kOuterB0, bool kOuterB1, class Epilogue>
bool launch(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (blocksOf(arguments, 256) >= multiprocessors()) {
    launchTiles<256, kOuterA, kOuterB0, kOuterB1>(context, arguments, epilogue);
  } else {
    launchTiles<128, kOuterA, kOuterB0, kOuterB1>(context, arguments, epilogue);
  }
  return true;
}

}  // namespace

// y = x·Wᵀ, or x·W with a weight that is stored transposed
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LinearEpilogue<bf16>& epilogue) {
  if (!epilogue.takesPacks(arguments.cols) || !covers<false, false>(arguments)) return false;
  if (arguments.rows == 0) return true;
  return arguments.b[1].summedOuter ? launch<false, false, true>(context, arguments, epilogue)
                                    : launch<false, false, false>(context, arguments, epilogue);
}

// dx = dy·W + g·A
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<bf16>& epilogue) {
  if (!epilogue.takesPacks(arguments.cols) || !covers<false, true>(arguments)) return false;
  if (arguments.rows == 0) return true;
  return arguments.b[1].summedOuter ? launch<false, true, true>(context, arguments, epilogue)
                                    : launch<false, true, false>(context, arguments, epilogue);
}

// dW = dyᵀ·x, whose rows are outputs or inputs
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<float>& epilogue) {
  if (arguments.rows < kLeastColumns || !epilogue.takesPacks(arguments.cols) || !arguments.b[1].summedOuter) return false;
  if (!covers<true, true>(arguments)) return false;
  return launch<true, true, true>(context, arguments, epilogue);
}

}  // namespace rlhf::cuda
