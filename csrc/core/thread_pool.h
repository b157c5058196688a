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
  void stop();
  void work(int slot);
  void drain(int slot);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  int64_t count_ = 0;
  Body body_ = nullptr;
  void* self_ = nullptr;
  std::exception_ptr failure_;
  std::mutex failureMutex_;
};

/// Number of threads to use when nobody says: RLHF_NUM_THREADS, else the number of hardware threads.
int defaultThreadCount();

}  // namespace rlhf
