#include "simt/fault.h"

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <iterator>
#include <memory>

#include "simt/deadline.h"

namespace rlhf::simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, kDeadlineSignal};
struct sigaction before[std::size(kSignals)];

/// What the process would have done without this file.
void passOn(int signal, siginfo_t* info, void* context) {
  const struct sigaction& action = before[std::ranges::find(kSignals, signal) - kSignals];
  if (action.sa_flags & SA_SIGINFO) return action.sa_sigaction(signal, info, context);
  if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN) return action.sa_handler(signal);
  sigaction(signal, &action, nullptr);
  if (signal == kDeadlineSignal) raise(signal);  // the others' access is repeated when this returns
}

/// Nothing may be thrown through the place where a thread was interrupted, which the compiler takes for one that goes on. So it goes on in a
/// function that switches to the scheduler and does not return: from the top of its stack, of which an overflow has left nothing else.
void leaveBy(void* context, Fault fault) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RSP] = reinterpret_cast<greg_t>(topOfEmulatedStack()) - 8;  // as behind a call
  registers[REG_RDI] = static_cast<greg_t>(fault);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&leaveEmulatedThread);
}

void onFault(int signal, siginfo_t* info, void* context) {
  if (!isInEmulatedThread()) return passOn(signal, info, context);
  leaveBy(context, isBehindEmulatedStack(info->si_addr) ? Fault::Overflow : Fault::Access);
}

void onDeadline(int signal, siginfo_t* info, void* context) {
  if (!isOfDeadline(*info)) return passOn(signal, info, context);
  if (countExpiry() && isInEmulatedThread()) leaveBy(context, Fault::Deadline);
}

/// Where handlers run: a thread whose stack is full has no room for them.
class HandlerStack {
 public:
  HandlerStack() {
    stack_t current;
    if (sigaltstack(nullptr, &current) != 0 || !(current.ss_flags & SS_DISABLE)) return;
    memory_ = std::make_unique<char[]>(kBytes);
    const stack_t own = {memory_.get(), 0, kBytes};
    sigaltstack(&own, nullptr);
  }
  ~HandlerStack() {
    const stack_t none = {nullptr, SS_DISABLE, 0};
    if (memory_) sigaltstack(&none, nullptr);
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  std::unique_ptr<char[]> memory_;
};

bool install() {
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction action = {};
    action.sa_sigaction = kSignals[i] == kDeadlineSignal ? onDeadline : onFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(kSignals[i], &action, &before[i]);
  }
  return true;
}

}  // namespace

void catchFaults() {
  static const bool isInstalled = install();
  (void)isInstalled;
  static thread_local const HandlerStack stack;
  (void)stack;
}

}  // namespace rlhf::simt

#else

namespace rlhf::simt {
void catchFaults() {}
}  // namespace rlhf::simt

#endif
