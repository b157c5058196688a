#include "cuda/prim/launch.cuh"
#include "cuda/prim/ptx.cuh"
#include "simt/selftest.h"

// The maps below are written from the PTX ISA's tables (matrix fragments of mma.m16n8k16 and ldmatrix), not from
// warp_ops.cc. With group = lane / 4 and pair = lane % 4.

namespace rlhf::simt {
namespace {

using namespace cuda;

constexpr int kMatrixElements = 64;  // of 8 × 8

struct MatrixShared {
  alignas(16) uint16_t element[4 * kMatrixElements];
};

/// Element c of row r of matrix m holds 64·m + 8·r + c.
template <bool kTransposed>
__global__ void loadMatrixKernel(uint32_t* out) {
  RLHF_SHARED_MEMORY(MatrixShared, shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 4 * kMatrixElements; i += 32) shared.element[i] = static_cast<uint16_t>(i);
  syncThreads();
  uint32_t registers[4];
  const uint16_t* row = &shared.element[lane / 8 * kMatrixElements + lane % 8 * 8];
  if (kTransposed) {
    cuda::ldmatrixX4Transposed(registers, row);
  } else {
    cuda::ldmatrixX4(registers, row);
  }
  for (int matrix = 0; matrix < 4; ++matrix) out[lane * 4 + matrix] = registers[matrix];
}

template <bool kTransposed>
std::string runLoadMatrix() {
  std::vector<uint32_t> out(32 * 4, 0xffffffffu);
  RLHF_LAUNCH(loadMatrixKernel<kTransposed>, dim3(1), dim3(32), sizeof(MatrixShared), nullptr, out.data());
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const uint32_t group = lane >> 2, pair = lane & 3;
      const uint32_t low = 64 * matrix + (kTransposed ? 8 * (2 * pair) + group : 8 * group + 2 * pair);
      const uint32_t high = 64 * matrix + (kTransposed ? 8 * (2 * pair + 1) + group : 8 * group + 2 * pair + 1);
      const uint32_t actual = out[lane * 4 + matrix];
      if (actual != (low | high << 16))
        return format("wrong result: lane %u register %u is 0x%08x instead of 0x%08x", lane, matrix, actual,
                      low | high << 16);
    }
  }
  return "";
}

float elementOfA(uint32_t m, uint32_t k) { return static_cast<float>((m * 7 + k * 3 + m * k) % 17) - 8; }
float elementOfB(uint32_t k, uint32_t n) { return static_cast<float>((k * 5 + n * 11 + k * n) % 13) - 6; }
float elementOfC(uint32_t m, uint32_t n) { return static_cast<float>(m) - 2.0f * static_cast<float>(n); }

uint32_t pack(float low, float high) {
  return floatToBf16(low).bits | static_cast<uint32_t>(floatToBf16(high).bits) << 16;
}

__global__ void mmaKernel(float* out) {
  const uint32_t lane = threadIdx.x, group = lane >> 2, pair = lane & 3;
  uint32_t a[4], b[2];
  float d[4];
  for (uint32_t r = 0; r < 4; ++r) {
    const uint32_t m = group + 8 * (r & 1), k = 2 * pair + 8 * (r >> 1);
    a[r] = pack(elementOfA(m, k), elementOfA(m, k + 1));
  }
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t k = 2 * pair + 8 * r;
    b[r] = pack(elementOfB(k, group), elementOfB(k + 1, group));
  }
  for (uint32_t i = 0; i < 4; ++i) d[i] = elementOfC(group + 8 * (i >> 1), 2 * pair + (i & 1));
  cuda::mmaM16N8K16<cuda::bf16>(d, a, b);
  for (uint32_t i = 0; i < 4; ++i) out[(group + 8 * (i >> 1)) * 8 + 2 * pair + (i & 1)] = d[i];
}

/// Small integers: every sum is exact, whatever its order.
std::string runMma() {
  std::vector<float> out(16 * 8, 0);
  RLHF_LAUNCH(mmaKernel, dim3(1), dim3(32), 0, nullptr, out.data());
  for (uint32_t m = 0; m < 16; ++m) {
    for (uint32_t n = 0; n < 8; ++n) {
      float expected = elementOfC(m, n);
      for (uint32_t k = 0; k < 16; ++k) expected += elementOfA(m, k) * elementOfB(k, n);
      if (out[m * 8 + n] != expected)
        return format("wrong result: D(%u, %u) is %g instead of %g", m, n, out[m * 8 + n], expected);
    }
  }
  return "";
}

/// ldmatrix at an address that is no multiple of 16 bytes.
__global__ void misalignedLoadKernel(uint32_t* out) {
  RLHF_SHARED_MEMORY(MatrixShared, shared);
  uint32_t registers[4];
  cuda::ldmatrixX4(registers, &shared.element[threadIdx.x % 8 * 8 + 1]);
  out[threadIdx.x] = registers[0];
}

std::string runMisalignedLoad() {
  std::vector<uint32_t> out(32);
  RLHF_LAUNCH(misalignedLoadKernel, dim3(1), dim3(32), sizeof(MatrixShared), nullptr, out.data());
  return "";
}

}  // namespace

std::vector<SelfTest> laneMapTests() {
  return {
      {"lanes: ldmatrix", runLoadMatrix<false>},
      {"lanes: ldmatrix transposed", runLoadMatrix<true>},
      {"lanes: mma", runMma},
      {"lanes: misaligned ldmatrix", runMisalignedLoad},
  };
}

}  // namespace rlhf::simt
