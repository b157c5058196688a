#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <system_error>

#include "core/error.h"

namespace rlhf {
namespace {

// A training step is a chain of short loops, so a worker looks for the next one for a moment before it sleeps: waking a
// sleeping thread costs more than most of these loops.
constexpr auto kSpinTime = std::chrono::microseconds(100);

thread_local bool insideTask = false;
thread_local int currentSlot = 0;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
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
    stop();
    throw Error(code::kArgument, format("the system does not start %d threads (%s): ask for fewer", threads, error.what()));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::runErased(int64_t count, Body body, void* self) {
  if (count <= 0) return;
  if (count == 1 || workers_.empty() || insideTask) {
    for (int64_t index = 0; index < count; ++index) body(self, index, currentSlot);
    return;
  }
  count_ = count;
  body_ = body;
  self_ = self;
  failure_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  drain(0);
  while (busy_.load(std::memory_order_acquire) != 0) pause();
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::drain(int slot) {
  insideTask = true;
  try {
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(self_, index, slot);
  } catch (...) {
    std::lock_guard lock(failureMutex_);
    if (!failure_) failure_ = std::current_exception();
    next_.store(count_, std::memory_order_relaxed);
  }
  insideTask = false;
}

void ThreadPool::work(int slot) {
  currentSlot = slot;
  uint64_t seen = 0;
  for (;;) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    while (generation_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < deadline) pause();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) return;
    drain(slot);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace rlhf
