#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace rlhf {

/// A fixed set of threads for data-parallel loops. Work is handed out by task index; what a task computes must depend on
/// its index alone, never on the thread or on how many threads there are: that is what keeps results bitwise equal.
/// One loop runs at a time; a loop started from inside a task runs on the calling thread.
class ThreadPool {
 public:
  /// `threads` counts the calling thread, so `threads - 1` are created. At least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls task(index, slot) for every index in [0, count); `slot` in [0, size()) names the executing thread, for
  /// per-thread scratch only. Returns when all are done; the first exception thrown by a task is rethrown here.
  template <class Task>
  void run(int64_t count, Task&& task) {
    using Plain = std::remove_reference_t<Task>;
    runErased(count, [](void* self, int64_t index, int slot) { (*static_cast<Plain*>(self))(index, slot); },
              const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  using Body = void (*)(void* self, int64_t index, int slot);
  void runErased(int64_t count, Body body, void* self);
  void runInParts(int64_t count, Body body, void* self);
  void work(int slot);
  bool runOne(int slot);
  void awaitTicketAfter(uint64_t seen);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleepers_ = 0;  // under mutex_
  std::atomic<bool> stopping_{false};

  // The loop's number in the high half, tasks not yet taken in the low half. Taking a task is one compare-and-swap, so a thread
  // that comes late to a loop finds nothing to take, and the caller never waits for a thread that has not begun.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> unfinished_{0};
  // The loop's task. Read only by who has taken a part of it, which keeps the loop from ending.
  int64_t count_ = 0;
  Body body_ = nullptr;
  void* self_ = nullptr;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

/// Number of threads to use when nobody says: RLHF_NUM_THREADS, else the number of hardware threads.
int defaultThreadCount();

}  // namespace rlhf
