#include "simt/warp_ops.h"

#include <bit>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"
#include "simt/block.h"

namespace rlhf::simt {
namespace {

constexpr uint32_t kFullWarp = 0xffffffffu;

template <class Operands>
Operands& operandsOf(void* const* operands, int lane) {
  return *static_cast<Operands*>(operands[lane]);
}

struct Shuffle {
  uint64_t bits, result;
  int source;
  Site site;
};

void computeShuffle(void* const* operands, uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& self = operandsOf<Shuffle>(operands, lane);
    const int source = self.source;
    if (source < 0 || source > 31 || !(mask >> source & 1))
      throw Error(code::kInternal, format("shuffle at %s: lane %d reads lane %d, which the mask 0x%08x leaves out",
                                          siteName(self.site).c_str(), lane, source, mask));
    self.result = operandsOf<Shuffle>(operands, source).bits;
  }
}

struct Ballot {
  bool predicate;
  uint32_t result;
};

void computeBallot(void* const* operands, uint32_t mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && operandsOf<Ballot>(operands, lane).predicate) votes |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) operandsOf<Ballot>(operands, lane).result = votes;
  }
}

void computeNothing(void* const*, uint32_t) {}

struct LoadMatrix {
  const void* row;
  uint32_t* registers;
};

uint16_t elementOf(void* const* operands, int matrix, int row, int col) {
  uint16_t element;
  const auto* address = static_cast<const char*>(operandsOf<LoadMatrix>(operands, 8 * matrix + row).row);
  std::memcpy(&element, address + 2 * col, sizeof element);
  return element;
}

void computeLoadMatrix(void* const* operands, uint32_t) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t low = elementOf(operands, matrix, lane / 4, lane % 4 * 2);
      const uint32_t high = elementOf(operands, matrix, lane / 4, lane % 4 * 2 + 1);
      operandsOf<LoadMatrix>(operands, lane).registers[matrix] = low | high << 16;
    }
  }
}

void computeLoadMatrixTransposed(void* const* operands, uint32_t) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t low = elementOf(operands, matrix, lane % 4 * 2, lane / 4);
      const uint32_t high = elementOf(operands, matrix, lane % 4 * 2 + 1, lane / 4);
      operandsOf<LoadMatrix>(operands, lane).registers[matrix] = low | high << 16;
    }
  }
}

struct MatrixMultiply {
  float* accumulator;
  const uint32_t* a;
  const uint32_t* b;
};

template <bool kFloat16>
float halfOfRegister(uint32_t word, int half) {
  if constexpr (kFloat16) return halfToFloat(static_cast<uint16_t>(word >> (16 * half)));
  return std::bit_cast<float>(half ? word & 0xffff0000u : word << 16);
}

template <bool kFloat16>
void computeMatrixMultiply(void* const* operands, uint32_t) {
  float a[16][16], b[16][8];  // [m][k], [k][n]
  for (int lane = 0; lane < 32; ++lane) {
    const auto& self = operandsOf<MatrixMultiply>(operands, lane);
    const int group = lane / 4, inGroup = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r)
        a[group + 8 * (r & 1)][2 * inGroup + half + 8 * (r >> 1)] = halfOfRegister<kFloat16>(self.a[r], half);
      for (int r = 0; r < 2; ++r) b[2 * inGroup + half + 8 * r][group] = halfOfRegister<kFloat16>(self.b[r], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& self = operandsOf<MatrixMultiply>(operands, lane);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), col = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < 16; ++k) self.accumulator[i] += a[row][k] * b[k][col];
    }
  }
}

constexpr WarpOperation kShuffle{"a shuffle", computeShuffle};
constexpr WarpOperation kBallot{"a ballot", computeBallot};
constexpr WarpOperation kSyncWarp{"__syncwarp", computeNothing};
constexpr WarpOperation kLoadMatrix{"ldmatrix", computeLoadMatrix};
constexpr WarpOperation kLoadMatrixTransposed{"ldmatrix.trans", computeLoadMatrixTransposed};
constexpr WarpOperation kMatrixMultiply{"mma", computeMatrixMultiply<false>};
constexpr WarpOperation kMatrixMultiplyFloat16{"mma of float16", computeMatrixMultiply<true>};

}  // namespace

uint64_t shuffleBits(uint32_t mask, uint64_t bits, int source, Site site) {
  Shuffle operands{bits, 0, source, site};
  warpRendezvous(kShuffle, mask, &operands, site);
  return operands.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Site site) {
  Ballot operands{predicate, 0};
  warpRendezvous(kBallot, mask, &operands, site);
  return operands.result;
}

void syncWarp(uint32_t mask, Site site) { warpRendezvous(kSyncWarp, mask, nullptr, site); }

void ldmatrixX4(uint32_t (&registers)[4], const void* row, bool transposed, Site site) {
  sharedOffset(row, 16, 16, "ldmatrix", site);
  LoadMatrix operands{row, registers};
  warpRendezvous(transposed ? kLoadMatrixTransposed : kLoadMatrix, kFullWarp, &operands, site);
}

void mmaM16N8K16(float (&accumulator)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool isFloat16, Site site) {
  MatrixMultiply operands{accumulator, a, b};
  warpRendezvous(isFloat16 ? kMatrixMultiplyFloat16 : kMatrixMultiply, kFullWarp, &operands, site);
}

}  // namespace rlhf::simt
