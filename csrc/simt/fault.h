#pragma once

namespace rlhf::simt {

/// From here on, a thread of a kernel that touches memory which is nobody's ends its launch with an Error. Elsewhere such an access does
/// what it did before. Only on x86-64 Linux, and not under AddressSanitizer, which has reports of its own.
void catchFaults();

/// Whether the calling operating-system thread runs a thread of a kernel.
bool isInEmulatedThread();
/// Ends that thread and the launch, with an Error.
[[noreturn]] void leaveEmulatedThread();

}  // namespace rlhf::simt
