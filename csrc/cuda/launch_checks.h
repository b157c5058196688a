#pragma once
#include "core/error.h"
#include "cuda/prim/platform.cuh"
#include "ops/context.h"

namespace rlhf::cuda {

/// Throws Error unless the context's scratch memory holds `bytes`.
inline void requireScratch(const OpContext& context, size_t bytes, const char* op) {
  if (bytes > 0 && (!context.scratch || context.scratchBytes < bytes))
    throw Error(code::kOutOfMemory, format("%s needs %zu bytes of scratch memory and was given %zu: ask Ops::scratchBytes "
                                           "with limits that cover this call",
                                           op, bytes, context.scratchBytes));
}

/// Calls function(T{}) with T the element type that `type` names: float32, bfloat16 and float16 exist here.
template <class Function>
void dispatchType(DType type, const char* op, Function&& function) {
  switch (type) {
    case DType::F32: return function(float{});
    case DType::BF16: return function(bf16{});
    case DType::F16: return function(f16{});
    default:
      throw Error(code::kUnsupported,
                  format("%s: the CUDA backend computes in float32, bfloat16 or float16, not %s", op, dtypeName(type)));
  }
}

/// Throws Error unless accumulators of the type that `type` names are float32: for ops whose arrays are all accumulators.
inline void requireFloatSums(DType type, const char* op) { dispatchType(type, op, [](auto) {}); }

/// Throws Error unless products are computed in the activations' type.
inline void requireProducts(DType compute, DType activations, const char* op) {
  if ((compute == DType::BF16 && activations != DType::BF16) || compute == DType::BF16X3)
    throw Error(code::kUnsupported, format("%s: products in %s of %s activations are not there on CUDA; keep the activations "
                                           "in bfloat16",
                                           op, dtypeName(compute), dtypeName(activations)));
}

/// Throws Error unless the weight has the activations' type.
inline void requireWeightType(DType weight, DType compute, DType activations, const char* op) {
  requireProducts(compute, activations, op);
  if (weight != activations)
    throw Error(code::kUnsupported, format("%s: a %s weight with %s activations; the CUDA backend needs them to be equal",
                                           op, dtypeName(weight), dtypeName(activations)));
}

/// Throws Error unless the cache has the activations' type.
inline void requireCacheType(const char* op, DType type, DType cacheType) {
  if (cacheType != type)
    throw Error(code::kUnsupported, format("%s: a %s cache of %s activations; the CUDA backend needs them to be equal", op,
                                           dtypeName(cacheType), dtypeName(type)));
}

}  // namespace rlhf::cuda
