#include "simt/deadline.h"

namespace rlhf::simt {
namespace {

constexpr double kSeconds = 30;  // the suite's longest launch takes less than one
thread_local double limit = kSeconds;

}  // namespace

double Deadline::seconds() { return limit; }

DeadlineOf::DeadlineOf(double seconds) { limit = seconds; }
DeadlineOf::~DeadlineOf() { limit = kSeconds; }

}  // namespace rlhf::simt

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <time.h>
#include <unistd.h>

#include <algorithm>

#if !defined(sigev_notify_thread_id)
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace rlhf::simt {
namespace {

thread_local volatile sig_atomic_t expiries = 0;  // of the launch that runs
thread_local volatile sig_atomic_t isRunning = 0;
const char identity = 0;

/// Counts the processor time of the operating-system thread that it was made on: other work of the machine takes nothing away from a launch.
class Timer {
 public:
  Timer() {
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = kDeadlineSignal;
    event.sigev_value.sival_ptr = const_cast<char*>(&identity);
    event.sigev_notify_thread_id = gettid();
    exists_ = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) == 0;
  }
  ~Timer() {
    if (exists_) timer_delete(timer_);
  }

  void start(double seconds, double again) { set({specOf(again), specOf(seconds)}); }
  void stop() { set({}); }

 private:
  static timespec specOf(double seconds) {
    const auto whole = static_cast<time_t>(seconds);
    return {whole, static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
  }
  void set(const itimerspec& times) {
    if (exists_) timer_settime(timer_, 0, &times, nullptr);
  }

  timer_t timer_{};
  bool exists_ = false;
};

Timer& timer() {
  static thread_local Timer instance;
  return instance;
}

}  // namespace

Deadline::Deadline() {
  constexpr double kLookAgain = 1;
  expiries = 0;
  isRunning = 1;
  timer().start(limit, std::min(limit, kLookAgain));
}

Deadline::~Deadline() {
  timer().stop();
  isRunning = 0;
  expiries = 0;
}

bool Deadline::hasPassed() { return expiries > 0; }

bool isOfDeadline(const siginfo_t& info) { return info.si_code == SI_TIMER && info.si_value.sival_ptr == &identity; }

bool countExpiry() {
  if (!isRunning) return false;
  expiries = expiries + 1;
  return expiries > 1;
}

}  // namespace rlhf::simt

#else

namespace rlhf::simt {
Deadline::Deadline() = default;
Deadline::~Deadline() = default;
bool Deadline::hasPassed() { return false; }
}  // namespace rlhf::simt

#endif
