#include "cpu/backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/arena.h"
#include "core/error.h"
#include "cpu/bfloat16_kernel.h"
#include "cpu/large_arrays.h"
#include "ops/host_device.h"

// What the kernels of each instruction set export (kernels/table.h, which is compiled under one set's name at a time).
#define RLHF_DECLARE_INSTRUCTION_SET(isa)       \
  namespace rlhf::isa {                         \
  Ops kernelTable();                            \
  double measureMultiplyAddPeak(ThreadPool&, int64_t, int); \
  double measureBfloat16Peak(ThreadPool&, int64_t, int); \
  double measureStreaming(ThreadPool&, const cpu::Stream&, int); \
  }
RLHF_DECLARE_INSTRUCTION_SET(scalar)
#if defined(RLHF_X86)
RLHF_DECLARE_INSTRUCTION_SET(avx2)
RLHF_DECLARE_INSTRUCTION_SET(avx512)
#endif
#undef RLHF_DECLARE_INSTRUCTION_SET

namespace rlhf::cpu {
namespace {

/// Floats of scratch memory that all threads share. Products pack their left operand there, and go through its rows in passes
/// where it is larger than kLargestPackedFloats.
size_t sharedScratchBytes(const ScratchLimits& limits) {
  constexpr int64_t kLargestPackedFloats = int64_t{16} << 20;
  constexpr int64_t kPaddingRows = 64;  // panels of few rows, and slack behind each
  const int64_t rows = std::max<int64_t>(limits.rows, 1) + kPaddingRows;
  const int64_t width = std::max<int64_t>(limits.maxWidth, 1) + limits.maxRank + kPaddingRows;
  // At least one panel of rows must fit whatever its depth, the vocabulary's for one.
  const int64_t deepest = std::max({width, rows, limits.vocab});
  const int64_t packed = std::max(kPaddingRows * deepest, std::min(rows * width, kLargestPackedFloats));

  const int64_t predictions = std::min(rows, kPredictionsPerBlock + kPaddingRows);
  const int64_t vocabBlock = std::min(limits.vocab, kVocabPerBlock) + kPaddingRows;
  const int64_t gathered = predictions * width;  // of the policy, and for a divergence of the reference too
  const int64_t statistics = 4 * predictions * (limits.vocab / kVocabPerStatistic + 4);
  const int64_t logitGradients = 2 * predictions * vocabBlock;
  // A strip of the head in bfloat16, where it is not packed before.
  const int64_t headStrip = kVocabPerStatistic / 2 * (width + kPaddingRows);
  const int64_t logProb = limits.vocab > 0 ? 2 * gathered + std::max(statistics, logitGradients) + headStrip : 0;
  return alignUp(static_cast<size_t>(packed + logProb) * sizeof(float));
}

size_t scratchBytes(const Device* device, const ScratchLimits* limits) {
  const auto threads = static_cast<size_t>(static_cast<const CpuDevice*>(device->self)->pool.size());
  return threads * kScratchPerThread + sharedScratchBytes(*limits);
}

/// An instruction set that this build has.
struct InstructionSet {
  const char* name;
  bool available;  // the processor has the instructions and the operating system saves their registers
  double (*measureMultiplyAddPeak)(ThreadPool&, int64_t, int);
  double (*measureBfloat16Peak)(ThreadPool&, int64_t, int);
  double (*measureStreaming)(ThreadPool&, const Stream&, int);
  Ops table;
};

Ops withScratch(Ops table) {
  table.scratchBytes = scratchBytes;
  return table;
}

#if defined(RLHF_X86)
// The compiler's own run-time checks look at CPUID and at XCR0, which tells what the operating system saves.
bool hasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool hasAvx512() {
  return hasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/// The build's instruction sets, the best one first. kernelTable() is compiled for its instruction set, so it is called only
/// where that is available.
const auto& instructionSets() {
#define RLHF_INSTRUCTION_SET(isa, available) \
  { #isa, available, isa::measureMultiplyAddPeak, isa::measureBfloat16Peak, isa::measureStreaming, available ? withScratch(isa::kernelTable()) : Ops{} }
  static const InstructionSet sets[] = {
#if defined(RLHF_X86)
      RLHF_INSTRUCTION_SET(avx512, hasAvx512()),
      RLHF_INSTRUCTION_SET(avx2, hasAvx2()),
#endif
      RLHF_INSTRUCTION_SET(scalar, true),
  };
#undef RLHF_INSTRUCTION_SET
  return sets;
}

const InstructionSet* find(const char* name) {
  for (const InstructionSet& set : instructionSets())
    if (set.available && std::strcmp(set.name, name) == 0) return &set;
  return nullptr;
}

const InstructionSet& chosen() {
  static const InstructionSet& set = [&]() -> const InstructionSet& {
    const char* name = std::getenv("RLHF_ISA");
    if (name && *name) {
      const InstructionSet* named = find(name);
      if (!named)
        throw Error(code::kUnsupported,
                    format("RLHF_ISA=%s: this processor or this build does not have that instruction set; use avx512, avx2 or "
                           "scalar, or leave RLHF_ISA unset",
                           name));
      return *named;
    }
    for (const InstructionSet& candidate : instructionSets())
      if (candidate.available) return candidate;
    throw Error(code::kUnsupported, "this processor has none of the build's instruction sets");
  }();
  return set;
}

}  // namespace

const Ops& ops() { return chosen().table; }

const Ops* opsFor(const char* instructionSet) {
  const InstructionSet* set = find(instructionSet);
  return set ? &set->table : nullptr;
}

double measureMultiplyAddPeak(int threads) {
  ThreadPool pool(threads);
  return chosen().measureMultiplyAddPeak(pool, 2'000'000, 15);
}

double measureBfloat16Peak(int threads) {
  ThreadPool pool(threads);
  return chosen().measureBfloat16Peak(pool, 500, 15);
}

double measureStreaming(int threads, const Stream& bytes) {
  ThreadPool pool(threads);
  constexpr int64_t kWorthReading = int64_t{1} << 30;
  const auto repetitions = std::clamp<int64_t>(kWorthReading / std::max<int64_t>(1, bytes.total()), 5, 2'000);
  return chosen().measureStreaming(pool, bytes, static_cast<int>(repetitions));
}

bool useBfloat16Kernel(const char* name) {
#if defined(RLHF_X86)
  if (hasAvx512()) return chooseBfloat16Kernel(name);
#endif
  return std::strcmp(name, "convert") == 0;
}

const char* bfloat16KernelName() {
#if defined(RLHF_X86)
  if (std::strcmp(chosen().name, "avx512") == 0)
    if (const Bfloat16Kernel* kernel = chosenBfloat16Kernel()) return kernel->name;
#endif
  return "convert";
}

CpuDevice::CpuDevice(int threads) : Device(makeHostDevice("cpu")), pool(threads) {
  self = this;
  useLargeArrays(*this);
}

}  // namespace rlhf::cpu
