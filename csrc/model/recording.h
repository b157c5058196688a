#pragma once
#include <map>
#include <memory>

#include "model/engine.h"

namespace rlhf {

/// Commands of an engine's stream that were recorded once and are queued again at once, a CUDA graph: the same ops on the same
/// arrays, whatever these hold by then. Spares the host the hundreds of launches of a decoding step. The engine must outlive it.
class Recording {
 public:
  static bool isPossible(const Engine& engine) { return engine.device()->beginCapture != nullptr; }

  /// Records what `commands` queues, and runs nothing of it. It may neither wait nor take memory nor copy to or from the host.
  template <class Commands>
  Recording(Engine& engine, Commands&& commands) : engine_(engine) {
    begin();
    try {
      commands();
    } catch (...) {
      drop();
      throw;
    }
    end();
  }
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  /// Queues them.
  void run() const;

 private:
  void begin() const;
  void end();
  void drop() noexcept;

  Engine& engine_;
  Graph* graph_ = nullptr;
};

/// The decoding steps of a model that were recorded last, one for each number of sequences. They outlive the generate() call that made them:
/// another one runs them where its own commands would be the very same, to the last address and setting. So nobody has to say that weights have
/// moved, and memory that a recording names may go: it is not run again, unless for who has the same memory for the same purpose.
class StepRecordings {
 public:
  /// Null where there is none of these commands.
  std::shared_ptr<const Recording> find(int64_t sequences, const CommandTrace& trace);
  void keep(int64_t sequences, CommandTrace trace, std::shared_ptr<const Recording> recording);

 private:
  /// Each takes memory of the driver's.
  static constexpr size_t kMost = 64;

  struct Kept {
    CommandTrace trace;
    std::shared_ptr<const Recording> recording;
    uint64_t used = 0;
  };
  std::map<int64_t, Kept> kept_;
  uint64_t uses_ = 0;
};

}  // namespace rlhf
