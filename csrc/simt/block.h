#pragma once
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "simt/async_copy.h"
#include "simt/deadline.h"
#include "simt/execution.h"
#include "simt/fault.h"
#include "simt/fiber.h"
#include "simt/schedule.h"
#include "simt/transactions.h"
#include "simt/warpgroup.h"

namespace rlhf::simt {

/// One CUDA thread of the block that runs.
struct Thread {
  enum class State { Runnable, AtBarrier, AtRendezvous, Waiting, Ended };

  Fiber fiber;
  State state = State::Ended;
  int number = 0;  // linear index in the block
  Dim3 index;
  Site site;                  // where it waits
  const char* waitsFor = "";  // the operation that it waits in
  AsyncCopies copies;

  int warp() const { return number / 32; }
  int lane() const { return number % 32; }
};

/// Executes the blocks of one launch on the calling operating-system thread, one after the other. One lives at a time.
class BlockExecutor {
 public:
  BlockExecutor(const char* kernel, Dim3 grid, Dim3 block, size_t sharedBytes, uint64_t seed);
  ~BlockExecutor();

  /// Runs body(argument) on every thread of one block.
  void run(Dim3 blockIndex, void (*body)(void*), void* argument);

  /// The calls of the thread that runs now (execution.h).
  void barrier(Site site);
  void rendezvous(const WarpOperation& operation, uint32_t mask, void* operands, Site site);
  Thread& current() { return *current_; }
  unsigned char* shared();
  size_t sharedBytes() const { return sharedBytes_; }
  [[noreturn]] void fail(const std::string& what) const;

  /// Whether a thread of the block runs now, and not what schedules it.
  bool isInThread() const { return isInThread_; }
  /// Ends the launch with an error, from the stack of the thread that runs now.
  [[noreturn]] void leaveAfterFault(Fault fault);
  /// Throws Error where the launch has taken longer than it may.
  void checkDeadline() const {
    if (Deadline::hasPassed()) failByDeadline();
  }

  Schedule& schedule() { return schedule_; }
  Transactions& transactions() { return transactions_; }
  Warpgroups& warpgroups() { return warpgroups_; }

  /// Stops the thread that runs now until another one wakes it.
  void waitUntilWoken(const char* waitsFor, Site site);
  void wake(int thread);
  /// Lets others run first, at random.
  void yieldSometimes();

 private:
  struct Rendezvous {
    const WarpOperation* operation;
    uint32_t mask, arrived;
    Site site;
    void* operands[32];
  };

  static void threadMain(void* thread);
  void startThreads(Dim3 blockIndex);
  void setRunnable(Thread& thread);
  void park(Thread::State state, const char* waitsFor, Site site);
  void releaseBarrierIfComplete();
  int pickThread();
  void checkGuards() const;
  [[noreturn]] void reportDeadlock() const;
  [[noreturn]] void failByDeadline() const;
  std::string describe(const Thread& thread) const;

  const char* kernel_;
  Dim3 grid_, block_;
  size_t sharedBytes_;
  uint64_t seed_;
  Schedule schedule_;
  Transactions transactions_{*this};
  Warpgroups warpgroups_{*this};
  Dim3 blockIndex_{0, 0, 0};
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  Thread* current_ = nullptr;
  std::vector<uint32_t> runnable_;                   // a bit per lane, a word per warp
  std::vector<std::vector<Rendezvous>> rendezvous_;  // per warp: those that still wait for lanes
  int live_ = 0, atBarrier_ = 0;
  Site barrierSite_;
  bool isInThread_ = false;
  std::exception_ptr failure_;
  Deadline deadline_;
};

/// The one that lives on this operating-system thread; throws Error where none does.
BlockExecutor& running();

/// "file.cu:12", without the directories.
std::string siteName(Site site);

}  // namespace rlhf::simt
