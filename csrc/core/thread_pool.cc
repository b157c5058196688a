#include "core/thread_pool.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <system_error>

#include "core/error.h"

namespace rlhf {
namespace {

// A training step is a chain of short loops, so a worker looks for the next one for a moment before it sleeps: waking a
// sleeping thread costs more than most of these loops.
constexpr int kSpinsBeforeSleep = 4000;
// Where there are more busy threads than processors, the one that is waited for needs this one's.
constexpr int kSpinsBeforeYield = 200;
constexpr int kYieldEvery = 50;

constexpr uint64_t kOneLoop = uint64_t{1} << 32;
constexpr uint64_t kTasksMask = kOneLoop - 1;

thread_local bool insideTask = false;
thread_local int currentSlot = 0;

void pause(int spins) {
  if (spins > kSpinsBeforeYield && spins % kYieldEvery == 0) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Joins the threads after `tellThem`, which makes their loops end.
template <class Tell>
void endWorkers(std::vector<std::thread>& workers, std::mutex& mutex, std::condition_variable& wake, Tell tellThem) {
  {
    std::lock_guard lock(mutex);
    tellThem();
  }
  wake.notify_all();
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

int defaultThreadCount() {
  if (const char* text = std::getenv("RLHF_NUM_THREADS")) {
    const int wanted = std::atoi(text);
    if (wanted > 0) return std::min(wanted, 1024);
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int threads) {
  try {
    for (int slot = 1; slot < std::max(1, threads); ++slot) workers_.emplace_back([this, slot] { work(slot); });
  } catch (const std::system_error& error) {
    endWorkers(workers_, mutex_, wake_, [&] { stopping_ = true, ticket_.fetch_add(kOneLoop); });
    throw Error(code::kArgument, format("the system does not start %d threads (%s): ask for fewer", threads, error.what()));
  }
}

ThreadPool::~ThreadPool() {
  endWorkers(workers_, mutex_, wake_, [&] { stopping_ = true, ticket_.fetch_add(kOneLoop); });
}

void ThreadPool::runErased(int64_t count, Body body, void* self) {
  if (count == 1 || workers_.empty() || insideTask) {
    for (int64_t index = 0; index < count; ++index) body(self, index, currentSlot);
    return;
  }
  if (count > static_cast<int64_t>(kTasksMask)) throw std::length_error("ThreadPool: more tasks than a loop can have");
  if (count > 0) runInParts(count, body, self);
}

void ThreadPool::runInParts(int64_t count, Body body, void* self) {
  count_ = count;
  body_ = body;
  self_ = self;
  failure_ = nullptr;
  failed_.store(false, std::memory_order_relaxed);
  unfinished_.store(count, std::memory_order_relaxed);
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) & ~kTasksMask) + kOneLoop;
  bool wake;
  {
    std::lock_guard lock(mutex_);  // no worker is between its last look at the ticket and its sleep
    ticket_.store(loop | static_cast<uint64_t>(count), std::memory_order_release);
    wake = sleepers_ > 0;
  }
  if (wake) wake_.notify_all();
  while (runOne(currentSlot)) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) pause(spins);
  if (failure_) std::rethrow_exception(failure_);
}

/// Takes one task of the loop that is on and runs it; false when there is none left.
bool ThreadPool::runOne(int slot) {
  uint64_t ticket = ticket_.load(std::memory_order_relaxed);
  do {
    if ((ticket & kTasksMask) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire, std::memory_order_relaxed));
  const int64_t index = count_ - static_cast<int64_t>(ticket & kTasksMask);
  insideTask = true;
  try {
    if (!failed_.load(std::memory_order_relaxed)) body_(self_, index, slot);
  } catch (...) {
    if (!failed_.exchange(true)) failure_ = std::current_exception();
  }
  insideTask = false;
  unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  return true;
}

void ThreadPool::awaitTicketAfter(uint64_t seen) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (ticket_.load(std::memory_order_relaxed) != seen) return;
    pause(spins);
  }
  std::unique_lock lock(mutex_);
  ++sleepers_;
  wake_.wait(lock, [&] { return ticket_.load(std::memory_order_relaxed) != seen; });
  --sleepers_;
}

void ThreadPool::work(int slot) {
  currentSlot = slot;
  for (;;) {
    while (runOne(slot)) {
    }
    const uint64_t seen = ticket_.load(std::memory_order_relaxed);
    if (stopping_.load(std::memory_order_acquire)) return;
    if ((seen & kTasksMask) == 0) awaitTicketAfter(seen);
  }
}

}  // namespace rlhf
