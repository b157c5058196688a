// Keys and values into the pages of the cache.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kPage = static_cast<int>(kCachePageTokens);
constexpr int kThreads = 128;

template <class T>
struct AppendArrays {
  const int32_t* places;
  const T* k;
  const T* v;
  T* kCache;
  T* vCache;
  int64_t kStride, vStride, kvHeads, dim, pages;
};

template <class T>
__global__ void __launch_bounds__(kThreads) appendKernel(const __grid_constant__ AppendArrays<T> a) {
  const int64_t row = blockIdx.x, place = a.places[row];
  if (place < 0 || place >= a.pages * kPage) return;
  const int64_t page = place / kPage, token = place % kPage;
  for (int64_t i = threadIdx.x; i < a.kvHeads * a.dim; i += kThreads) {
    const int64_t head = i / a.dim, d = i % a.dim;
    const int64_t block = (page * a.kvHeads + head) * a.dim * kPage;
    a.kCache[block + d * kPage + token] = a.k[row * a.kStride + i];
    a.vCache[block + token * a.dim + d] = a.v[row * a.vStride + i];
  }
}

}  // namespace

void kvAppend(OpContext& context, const KvAppend& a) {
  requireCacheType("kvAppend", a.type, a.cacheType);
  dispatchType(a.type, "kvAppend", [&](auto zero) {
    using T = decltype(zero);
    const AppendArrays<T> arrays{a.places,
                                 static_cast<const T*>(a.k),
                                 static_cast<const T*>(a.v),
                                 static_cast<T*>(a.kCache),
                                 static_cast<T*>(a.vCache),
                                 a.kStride,
                                 a.vStride,
                                 a.kvHeads,
                                 a.headDim,
                                 a.pages};
    RLHF_LAUNCH(appendKernel<T>, dim3(static_cast<uint32_t>(a.rows)), dim3(kThreads), 0, context.stream, arrays);
  });
}

}  // namespace rlhf::cuda
