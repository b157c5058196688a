#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "simt/execution.h"

// The warp-wide operations of csrc/cuda/prim/ptx.cuh. Register layouts: PTX ISA 9.1, "Matrix fragments for mma.m16n8k16"
// and "ldmatrix".

namespace rlhf::simt {

/// The bits that lane `source` holds; a source outside the mask is an Error (CUDA leaves it undefined).
uint64_t shuffleBits(uint32_t mask, uint64_t bits, int source, Site site);

/// The value of 4 or 8 bytes that lane `source` holds.
template <class T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  return std::bit_cast<T>(static_cast<Bits>(shuffleBits(mask, std::bit_cast<Bits>(value), source, site)));
}

/// A bit for every lane of the mask whose predicate holds.
uint32_t ballot(uint32_t mask, bool predicate, Site site);

void syncWarp(uint32_t mask, Site site);

/// Four 8×8 matrices of 16-bit elements; lane 8m + r gives the address of row r of matrix m.
void ldmatrixX4(uint32_t (&registers)[4], const void* row, bool transposed, Site site);

/// D += A·B on 16×16 and 16×8 fragments of bfloat16 or float16. Products are exact; they are added to the accumulator one by one in
/// float32, in the order of k. Tensor cores add otherwise (and round towards zero): results agree within rounding only.
void mmaM16N8K16(float (&accumulator)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool isFloat16, Site site);

}  // namespace rlhf::simt
