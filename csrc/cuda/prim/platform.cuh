#pragma once
// One text for two compilers: nvcc, and the host compiler against csrc/simt's emulator (tests only).

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "simt/cuda.h"
#endif

namespace rlhf::cuda {

#if defined(__CUDACC__)

#define RLHF_DEVICE __device__ __forceinline__

using bf16 = __nv_bfloat16;
RLHF_DEVICE float bf16ToFloat(bf16 value) { return __bfloat162float(value); }
RLHF_DEVICE bf16 floatToBf16(float value) { return __float2bfloat16_rn(value); }

using f16 = __half;
RLHF_DEVICE float f16ToFloat(f16 value) { return __half2float(value); }
RLHF_DEVICE f16 floatToF16(float value) { return __float2half_rn(value); }

/// The line of a call, for the emulator's reports; nothing on a GPU.
struct Site {
  RLHF_DEVICE static constexpr Site here() { return {}; }
};

// Declares `name`, a reference to the block's dynamic shared memory seen as a Type; its size is given at the launch. The
// alignment is what swizzled tiles need.
#define RLHF_SHARED_MEMORY(Type, name)                          \
  extern __shared__ __align__(1024) unsigned char name##Bytes[]; \
  Type& name = *reinterpret_cast<Type*>(name##Bytes)

RLHF_DEVICE void syncThreads(Site = Site::here()) { __syncthreads(); }

RLHF_DEVICE uint32_t bitsOf(float value) { return __float_as_uint(value); }
RLHF_DEVICE float floatOf(uint32_t bits) { return __uint_as_float(bits); }

/// a·b, rounded. Of a plain product whose result is added to something nvcc makes one fused multiply-add, which rounds once.
RLHF_DEVICE float roundedProduct(float a, float b) { return __fmul_rn(a, b); }

#else

#define RLHF_DEVICE inline

using Site = simt::Site;

#define RLHF_SHARED_MEMORY(Type, name) Type& name = *reinterpret_cast<Type*>(rlhf::simt::sharedMemory())

/// A barrier of all threads of the block.
inline void syncThreads(Site site = Site::here()) { simt::blockBarrier(site); }

inline uint32_t bitsOf(float value) { return std::bit_cast<uint32_t>(value); }
inline float floatOf(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float roundedProduct(float a, float b) {
  volatile float product = a * b;  // what the optimizer sees it cannot fuse
  return product;
}

#endif

RLHF_DEVICE float toFloat(float value) { return value; }
RLHF_DEVICE float toFloat(bf16 value) { return bf16ToFloat(value); }
RLHF_DEVICE float toFloat(f16 value) { return f16ToFloat(value); }

template <class T>
RLHF_DEVICE T fromFloat(float value);
template <>
RLHF_DEVICE float fromFloat<float>(float value) {
  return value;
}
template <>
RLHF_DEVICE bf16 fromFloat<bf16>(float value) {
  return floatToBf16(value);
}
template <>
RLHF_DEVICE f16 fromFloat<f16>(float value) {
  return floatToF16(value);
}

/// Two values rounded to 16 bits in one register, `low` in its lower half.
template <class T>
RLHF_DEVICE uint32_t packPair(float low, float high) {
  union {
    T half[2];
    uint32_t both;
  } pair;
  pair.half[0] = fromFloat<T>(low);
  pair.half[1] = fromFloat<T>(high);
  return pair.both;
}

/// Elements that move as one aligned access; a Pack of 16 bytes is the widest that there is.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T item[kCount];
};

template <class T>
inline constexpr int kWidestPack = 16 / static_cast<int>(sizeof(T));

/// Whether packs of four may be read and written at an array's multiples of four; true of an array that is not there.
template <class T>
bool isPackAligned(const T* array) {
  return reinterpret_cast<uintptr_t>(array) % sizeof(Pack<T, 4>) == 0;
}

template <class T, int kCount>
RLHF_DEVICE void addPack(Pack<float, kCount>& sum, const T* terms) {
  const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(terms);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum.item[i] += toFloat(pack.item[i]);
}

}  // namespace rlhf::cuda
