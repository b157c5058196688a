#pragma once
// Tensor maps, which tell TMA how an array lies in global memory. Made by the host for both compilers.

#include "core/error.h"
#include "cuda/prim/launch.cuh"

#if defined(__CUDACC__)
#include <cudaTypedefs.h>
#else
#include "simt/tensor_map.h"
#endif

namespace rlhf::cuda {

#if defined(__CUDACC__)
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::TensorMap;
#endif

inline constexpr int kBoxColumns = 64;  // of bfloat16: 128 bytes, as wide as the swizzle reaches

#if defined(__CUDACC__)
/// The driver's function, found without linking its library.
inline PFN_cuTensorMapEncodeTiled_v12000 tensorMapEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  checkCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
            "looking for cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || !function)
    throw Error(code::kInternal, "the NVIDIA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}
#endif

#if defined(__CUDACC__)
/// A map of kRank dimensions, the innermost first, and of the bytes from one to the next in all but that.
template <int kRank>
TensorMap encodeTensorMap(const void* data, const cuuint64_t (&extents)[kRank], const cuuint64_t (&strideBytes)[kRank - 1],
                          const cuuint32_t (&box)[kRank]) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = tensorMapEncoder();
  cuuint32_t elementStrides[kRank];
  for (cuuint32_t& each : elementStrides) each = 1;
  TensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(data), extents, strideBytes, box, elementStrides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw Error(code::kInternal, format("cuTensorMapEncodeTiled failed with %d for %lld × %lld elements", static_cast<int>(status),
                                        static_cast<long long>(extents[kRank - 1]), static_cast<long long>(extents[0])));
  return map;
}
#endif

/// The map of a bfloat16 array of `rows` rows of `cols`, `stride` elements apart, whose boxes are kBoxColumns × boxRows elements. The
/// array and its rows are aligned to 16 bytes, and boxRows is at most 256.
inline TensorMap makeTensorMap(const void* data, int64_t rows, int64_t cols, int64_t stride, int boxRows) {
#if defined(__CUDACC__)
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strideBytes[] = {static_cast<cuuint64_t>(stride) * sizeof(bf16)};
  return encodeTensorMap<2>(data, extents, strideBytes, {kBoxColumns, static_cast<cuuint32_t>(boxRows)});
#else
  return simt::makeTensorMap(data, rows, cols, stride, kBoxColumns, boxRows, simt::Swizzle::Bytes128);
#endif
}

/// The same of rows of heads, each `cols` wide and aligned to 16 bytes: boxes are of one head, and zero past its columns.
inline TensorMap makeHeadMap(const void* data, int64_t rows, int64_t heads, int64_t cols, int64_t stride, int boxRows) {
#if defined(__CUDACC__)
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strideBytes[] = {static_cast<cuuint64_t>(cols) * sizeof(bf16), static_cast<cuuint64_t>(stride) * sizeof(bf16)};
  return encodeTensorMap<3>(data, extents, strideBytes, {kBoxColumns, 1, static_cast<cuuint32_t>(boxRows)});
#else
  return simt::makeHeadMap(data, rows, heads, cols, stride, kBoxColumns, boxRows, simt::Swizzle::Bytes128);
#endif
}

}  // namespace rlhf::cuda
