#pragma once
#include <cstdint>

namespace rlhf::simt {

/// Why a thread of a kernel cannot go on.
enum class Fault : int64_t {
  Access,    // of memory that is nobody's
  Overflow,  // of its stack
  Deadline,  // of the launch (deadline.h)
};

/// From here on, on the calling operating-system thread, a thread of a kernel that can no longer go on ends its launch with an Error. What
/// happens elsewhere does what it did before. Only on x86-64 Linux, and not under AddressSanitizer, which has reports of its own.
void catchFaults();

/// Whether the calling operating-system thread runs a thread of a kernel.
bool isInEmulatedThread();
/// Whether that thread's stack ends before the address.
bool isBehindEmulatedStack(const void* address);
/// The first address after that thread's stack.
void* topOfEmulatedStack();
/// Ends that thread and the launch, with an Error.
[[noreturn]] void leaveEmulatedThread(Fault fault);

}  // namespace rlhf::simt
