#pragma once
#include <string>
#include <vector>

namespace rlhf::simt {

/// One kernel that runs on the emulator: "" where its results are right, else "wrong result: …"; what the emulator
/// itself finds is thrown.
struct SelfTest {
  const char* name;
  std::string (*run)();
};

/// Kernels with one seeded bug each, and the sound kernels that they were made from (selftest_bugs.cc).
std::vector<SelfTest> bugTests();

/// Register layouts of ldmatrix and mma against the maps that the PTX ISA documents (selftest_lanes.cc).
std::vector<SelfTest> laneMapTests();

/// sm_90a's copies, barriers and products, with one bug each and without (selftest_hopper.cc).
std::vector<SelfTest> hopperTests();

}  // namespace rlhf::simt
