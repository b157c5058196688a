#include "simt/fault.h"

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <signal.h>
#include <ucontext.h>

#include <iterator>

namespace rlhf::simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS};
struct sigaction before[std::size(kSignals)];

/// What the process would have done without this file.
void passOn(int signal, siginfo_t* info, void* context) {
  const struct sigaction& action = before[signal == SIGSEGV ? 0 : 1];
  if (action.sa_flags & SA_SIGINFO) return action.sa_sigaction(signal, info, context);
  if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN) return action.sa_handler(signal);
  sigaction(signal, &action, nullptr);  // the access is repeated when this returns
}

/// Nothing may be thrown through the access itself, which the compiler takes for one that succeeds. So the thread goes on, on its own
/// stack, in a function that switches to the scheduler and does not return.
void onFault(int signal, siginfo_t* info, void* context) {
  if (!isInEmulatedThread()) return passOn(signal, info, context);
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  constexpr greg_t kRedZone = 128;  // below the stack pointer, where a function may keep data (System V ABI)
  registers[REG_RSP] = ((registers[REG_RSP] - kRedZone) & ~greg_t{15}) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&leaveEmulatedThread);
}

bool install() {
  struct sigaction action = {};
  action.sa_sigaction = onFault;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &before[i]);
  return true;
}

}  // namespace

void catchFaults() {
  static const bool isInstalled = install();
  (void)isInstalled;
}

}  // namespace rlhf::simt

#else

namespace rlhf::simt {
void catchFaults() {}
}  // namespace rlhf::simt

#endif
