#pragma once
#include <algorithm>
#include <initializer_list>

#include "cuda/prim/platform.cuh"

// How the threads of a block go through a row: in packs of 16 bytes where everything is aligned to them, else element by element.

namespace rlhf::cuda {

inline constexpr int kMaxRowThreads = 256;

/// Threads for a row: enough that each has a pack to load, whole warps, and a function of the row's length alone.
inline int threadsFor(int64_t cols) {
  const int64_t packs = (cols + 7) / 8;
  return static_cast<int>(std::min<int64_t>(kMaxRowThreads, (packs + 31) / 32 * 32));
}

/// Whether rows that begin at multiples of these `lengths` from the arrays can be read and written in packs of `pack` T's.
template <class T>
bool canPack(int pack, std::initializer_list<int64_t> lengths, std::initializer_list<const void*> arrays) {
  const auto fits = [&](int64_t length) { return length % pack == 0; };
  const auto isAligned = [&](const void* array) { return reinterpret_cast<uintptr_t>(array) % (sizeof(T) * static_cast<size_t>(pack)) == 0; };
  return std::all_of(lengths.begin(), lengths.end(), fits) && std::all_of(arrays.begin(), arrays.end(), isAligned);
}

/// Calls f(first column, …) for the packs of a row that fall to this thread.
template <int kPack, class Function>
RLHF_DEVICE void forEachPack(int64_t cols, Function&& f) {
  for (int64_t col = static_cast<int64_t>(threadIdx.x) * kPack; col < cols; col += static_cast<int64_t>(blockDim.x) * kPack)
    f(col);
}

template <int kPack, class T>
RLHF_DEVICE Pack<T, kPack> loadPack(const T* address) {
  return *reinterpret_cast<const Pack<T, kPack>*>(address);
}

template <class T, int kPack>
RLHF_DEVICE void storePack(T* address, const Pack<T, kPack>& pack) {
  *reinterpret_cast<Pack<T, kPack>*>(address) = pack;
}

/// Calls launch.operator()<kPack>(first, count) for the whole packs of flat arrays, then for the elements that are left.
template <class T, class Launch>
void launchFlat(int64_t count, std::initializer_list<const void*> arrays, Launch&& launch) {
  constexpr int kPack = kWidestPack<T>;
  const int64_t packed = canPack<T>(kPack, {}, arrays) ? count / kPack * kPack : 0;
  if (packed > 0) launch.template operator()<kPack>(0, packed);
  if (packed < count) launch.template operator()<1>(packed, count - packed);
}

}  // namespace rlhf::cuda
