#pragma once
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

}  // namespace rlhf
