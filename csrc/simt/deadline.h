#pragma once

#if defined(__linux__)
#include <signal.h>
#endif

namespace rlhf::simt {

/// A limit to the processor time of a launch: a kernel with a loop that does not end would else stop the process for ever, without a name.
/// One lives at a time on an operating-system thread. It ends a launch where faults are caught (fault.h), and nothing elsewhere.
class Deadline {
 public:
  Deadline();
  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  /// Whether the launch has taken longer. What looks at this can say so in good order; a thread that does not look is interrupted.
  static bool hasPassed();
  static double seconds();
};

/// Another limit for the launches of a scope, on this thread.
class DeadlineOf {
 public:
  explicit DeadlineOf(double seconds);
  ~DeadlineOf();
  DeadlineOf(const DeadlineOf&) = delete;
  DeadlineOf& operator=(const DeadlineOf&) = delete;
};

#if defined(__linux__)
inline constexpr int kDeadlineSignal = SIGALRM;

/// Whether a signal comes from a deadline of this library.
bool isOfDeadline(const siginfo_t& info);
/// At each such signal. True when nobody has looked at the deadline for as long again.
bool countExpiry();
#endif

}  // namespace rlhf::simt
