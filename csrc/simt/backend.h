#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace rlhf::simt {

/// The CUDA sources' operator table, compiled by the host compiler and run by the emulator. Entries that csrc/cuda does
/// not have yet are null. The schedule is the one that RLHF_SIMT_SEED names (execution.h), read at every launch.
const Ops& ops();

/// The emulated device: host memory, and streams that run everything at once.
Device* device();

/// The same ops and device as a GPU looks from the host: the device's memory is its own, which the host cannot touch and outside which
/// no array of an op may lie, and what is copied to the host arrives when the host waits. A device is one thread's at a time, as an engine's
/// is: the one that apartDevice gives is the process's.
const Ops& apartOps();
Device* openApartDevice();
void closeApartDevice(Device* device);
Device* apartDevice();

/// The kernels that were launched on this thread since the last call, "graph" before those of a recording; the latest thousands.
std::vector<std::string> takeLaunches();
void logLaunch(const char* name);

/// Small kernels with one seeded bug each (and sound ones beside them), to prove that the emulator finds the bug.
std::vector<std::string> selfTestNames();

/// Runs one of them under the schedule of `seed`. Empty: it ran and its results are right. Else what the emulator
/// reported, or "wrong result: …". Throws Error for an unknown name.
std::string runSelfTest(const std::string& name, uint64_t seed);

}  // namespace rlhf::simt
