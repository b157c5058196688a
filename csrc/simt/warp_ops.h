#pragma once
#include <cstdint>

#include "simt/execution.h"

// The warp-wide operations of csrc/cuda/prim/ptx.cuh. Register layouts: PTX ISA 9.1, "Matrix fragments for mma.m16n8k16"
// and "ldmatrix".

namespace rlhf::simt {

/// The value that lane (own lane XOR laneMask) holds; a source outside the mask is an Error (CUDA leaves it undefined).
float shuffleXor(uint32_t mask, float value, int laneMask, Site site);

/// A bit for every lane of the mask whose predicate holds.
uint32_t ballot(uint32_t mask, bool predicate, Site site);

void syncWarp(uint32_t mask, Site site);

/// Four 8×8 matrices of 16-bit elements; lane 8m + r gives the address of row r of matrix m.
void ldmatrixX4(uint32_t (&registers)[4], const void* row, bool transposed, Site site);

/// D += A·B on 16×16 and 16×8 bfloat16 fragments. Products are exact; they are added to the accumulator one by one in
/// float32, in the order of k. Tensor cores add otherwise (and round towards zero): results agree within rounding only.
void mmaM16N8K16(float (&accumulator)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);

}  // namespace rlhf::simt
