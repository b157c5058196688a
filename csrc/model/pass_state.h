#pragma once
#include <memory>

#include "model/adapter.h"
#include "model/buffers.h"
#include "model/head.h"
#include "model/pass_memory.h"
#include "model/transformer.h"

namespace rlhf {

/// What a pass borrows and what its backward pass must know.
struct Pass::State {
  explicit State(std::shared_ptr<PassMemory> passMemory) : memory(std::move(passMemory)) {}
  ~State() {
    releaseActivations();
    memory->outputs.giveBack(std::move(outputs));
  }

  /// From here on the pass holds its outputs only and no longer counts as live.
  void releaseActivations() {
    if (!holdsActivations) return;
    memory->activations.giveBack(std::move(activations));
    memory->logits.giveBack(std::move(logits));
    holdsActivations = false;
    --memory->live;
  }

  std::shared_ptr<PassMemory> memory;
  DeviceMemory outputs, activations, logits;
  bool holdsActivations = false;
  bool grad = false;

  RowSet rows;
  int64_t predictions = 0;
  double temperature = 1;
  PassShape shape;
  int lowest = 0;
  ForwardBuffers buffers;
  std::shared_ptr<Adapter> adapter;  // shared: they may be removed from the model while the pass lives
  std::shared_ptr<Head> head;
};

}  // namespace rlhf
