#pragma once
#include <cstddef>

namespace rlhf::simt {

/// A stackful coroutine: one CUDA thread. Its stack ends in guard pages, so that an overflow faults instead of
/// corrupting a neighbour. A fiber belongs to the operating-system thread that started it.
class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Prepares a call of entry(argument) at the next resume(). Whatever the fiber ran before is dropped, its stack not
  /// unwound. `entry` must neither return nor let an exception out: its last act is suspend().
  void start(void (*entry)(void*), void* argument);

  /// Runs the fiber until its next suspend(). Called by the scheduler.
  void resume();

  /// Goes back to the scheduler's resume(). Called on the fiber itself.
  void suspend();

  /// The first address after the stack.
  void* top() const;
  /// Whether the address is one that only an overflow of the stack touches.
  bool isBehindStack(const void* address) const;

 private:
  static void begin();
  void allocateStack();

  char* mapping_ = nullptr;
  void* fiberContext_ = nullptr;      // saved stack pointer, or ucontext where there is no switch in assembly
  void* schedulerContext_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* schedulerFakeStack_ = nullptr;  // AddressSanitizer's bookkeeping
  void* fiberFakeStack_ = nullptr;
  const void* schedulerStack_ = nullptr;
  size_t schedulerStackBytes_ = 0;
};

}  // namespace rlhf::simt
