#pragma once
#include <memory>

#include "model/adapter.h"
#include "model/buffers.h"
#include "model/head.h"
#include "model/model.h"
#include "model/pass_memory.h"
#include "model/transformer.h"

namespace rlhf {

/// What the token statistics of a pass were made from, for divergences to them. Shared by the pass and by those that refer to it.
struct KeptDistribution {
  ~KeptDistribution() { memory->distributions.giveBack(std::move(block)); }

  std::shared_ptr<Model> model;  // whose head it is
  std::shared_ptr<PassMemory> memory;
  DeviceMemory block;
  void* hidden = nullptr;  // [N, C]
  void* lse = nullptr;     // [N]
  Batch batch;
  double temperature = 1;
};

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
  bool keepLogits = true;  // where they fit

  RowSet rows;
  int64_t predictions = 0;
  double temperature = 1;
  PassShape shape;
  int lowest = 0;
  ForwardBuffers buffers;
  std::shared_ptr<Adapter> adapter;  // shared: they may be removed from the model while the pass lives
  std::shared_ptr<Head> head;
  std::shared_ptr<const KeptDistribution> distribution;  // this pass's own
  std::shared_ptr<const KeptDistribution> reference;
  KlDirection klDirection = KlDirection::Reverse;
};

}  // namespace rlhf
