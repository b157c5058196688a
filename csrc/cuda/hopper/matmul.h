#pragma once
#include "cuda/linear_epilogue.cuh"

// Products of bfloat16 matrices on Hopper's own instructions. Each queues D and returns true, or returns false and does nothing where
// the device has none (chosenCapability), or the operands or the epilogue's arrays are not as TMA and packs of four take them. What
// decides is independent of the number of rows of y = x·Wᵀ, so that a row has the same bits among any others.

namespace rlhf::cuda {

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LinearEpilogue<bf16>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<bf16>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<float>& epilogue);

/// D of operands that lie as Order tells: by Hopper's tensor cores where the device has them and the kernel covers the operands, else by the
/// tiles that run everywhere.
template <class T, class Order, class Epilogue>
void multiply(OpContext& context, const MatmulArguments& product, const Epilogue& epilogue) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (launchHopperMatmul(context, product, epilogue)) return;
  }
  launchProduct<T, Order>(context, product, epilogue);
}

}  // namespace rlhf::cuda
