#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "model/loss_scale.h"
#include "model/merge.h"
#include "model/pass_state.h"
#include "model/recording.h"

namespace rlhf {

/// How a generate() call laid its cache out.
struct CacheShape {
  int64_t slots = 0;        // sequences that are decoded at a time
  int64_t tableStride = 0;  // pages that each may have
  int64_t pages = 0;

  /// Whether a call that wants `other` can do with this. Not with tables that are much wider: every step copies them.
  bool serves(const CacheShape& other) const {
    return slots == other.slots && pages >= other.pages && tableStride >= other.tableStride && tableStride <= 2 * other.tableStride;
  }
};

struct Model::Impl {
  Impl(std::shared_ptr<Engine> sharedEngine, const ModelConfig& config, bool trainable, DType storage)
      : engine(std::move(sharedEngine)),
        transformer(*engine, config, trainable, storage),
        lossScale(engine->type()),
        passMemory(std::make_shared<PassMemory>(engine)) {}

  struct ParameterPlace {
    ParameterGroup& group;
    int index;
  };

  std::shared_ptr<Engine> engine;
  Transformer transformer;
  LossScale lossScale;
  std::map<std::string, std::shared_ptr<Adapter>> adapters;
  std::map<std::string, std::shared_ptr<Head>> heads;
  std::string mergedName;  // of the adapter that is merged and can be unmerged
  std::unique_ptr<MergedAdapter> merged;
  std::shared_ptr<PassMemory> passMemory;
  DeviceMemory workspace;  // arrays that live no longer than one call
  CacheShape lastCache;
  StepRecordings stepRecordings;
  size_t logitsBudget = size_t{512} << 20;
  bool recomputeLayers = false;

  const ModelConfig& config() const { return transformer.architecture().config; }
  std::vector<ParameterGroup*> groups();
  /// ERR_RLHF_UNKNOWN_NAME with the nearest known name.
  ParameterPlace find(const std::string& name);
  std::shared_ptr<Adapter> adapter(const std::string& name) const;  // null for the empty name
  std::shared_ptr<Head> head(const std::string& name) const;
  /// Throws when `name` cannot name a new adapter or head.
  void requireNewName(const std::string& name) const;

  /// Scratch memory for passes of so many rows; `otherWidth` is the hidden width of a reference.
  void reserveScratch(int64_t rows, const Adapter* adapter, const Head* head, int64_t otherWidth = 0, int64_t tableStride = 0);
  /// The workspace, at least so large.
  char* reserveWorkspace(size_t bytes);
  void reserve(DeviceMemory& memory, MemoryUse use, size_t bytes, const char* what);

  /// `self` is this model, for passes that others refer to.
  std::unique_ptr<Pass> forward(const Batch& batch, const ForwardOptions& options, const std::shared_ptr<Model>& self);
  void backward(Pass& pass, const PassGradients& gradients);
  void lossBackward(Pass& pass, const PassLosses& losses, LossSums& sums);
  std::unique_ptr<Pass> forwardBackward(const Batch& batch, const ForwardOptions& options, const PassLosses& losses, LossSums& sums);
  /// Copies a batch to a pass's arrays. Gives the number of rows that the pass may leave out; `values`: a head's are wanted.
  int64_t upload(const Batch& batch, const ForwardBuffers& buffers, bool values);

 private:
  /// A pass up to its hidden states and values.
  std::unique_ptr<Pass> start(const Batch& batch, const ForwardOptions& options);
  void layOut(Pass::State& state, int64_t predictions);
  /// Of a pass that keeps what backward needs: whether it does without the rows that nobody reads.
  bool leavesRowsOutOfBackward(const PassShape& shape) const;
  /// value[n] of the hidden states. In rows that were left out it is 0, or what the head makes of zeros where it trains.
  void findValues(const Pass::State& state, void* value);
  /// An array of a pass's outputs, by its number: log-probs, log-sum-exps, entropies, values, divergences.
  void* output(const Pass::State& state, int number) const;
  /// Throws for a pass that no backward pass can follow.
  static void requireActivations(const Pass::State& state);
  /// Before anything of a backward pass: the pass and all gradients have the scale of now.
  void setLossScale(Pass::State& state);
  /// Whether anything below the final norm trains.
  bool reachesBase(const Pass::State& state) const;
  /// The arrays of a backward pass over those of its forward pass, in the workspace. `reserveMore(layout)` may add others.
  template <class ReserveMore>
  std::pair<ForwardBuffers, BackwardBuffers> layOutBackwardPass(const Pass::State& state, ReserveMore&& reserveMore);
  /// Whether a block's logits stand in memory until its backward pass where the loss is inside the pass. On the CPU products in bfloat16
  /// compute them again in the time that writing and reading them takes; in float32 they take longer.
  bool keepsBlockLogits() const;
  /// The most predictions whose logits stand at a time.
  int64_t predictionsPerLossBlock() const;
  /// The distribution that a pass on this batch is to be compared with; null without one. Throws ERR_RLHF_ARGUMENT where the two
  /// do not fit together.
  std::shared_ptr<const KeptDistribution> referenceOf(const Batch& batch, const ForwardOptions& options) const;
  std::shared_ptr<const KeptDistribution> keepDistribution(const Pass::State& state, const Batch& batch, const void* lse,
                                                           const std::shared_ptr<Model>& self);
  Reference reference(const Pass::State& state) const;
};

template <class ReserveMore>
std::pair<ForwardBuffers, BackwardBuffers> Model::Impl::layOutBackwardPass(const Pass::State& state, ReserveMore&& reserveMore) {
  const Architecture& architecture = transformer.architecture();
  BufferLayout sizes;
  layOutRecomputation(*engine, architecture, state.shape, state.buffers, sizes);
  layOutBackward(*engine, architecture, state.shape, sizes);
  reserveMore(sizes);
  BufferLayout arrays(reserveWorkspace(sizes.bytes()));
  const ForwardBuffers buffers = layOutRecomputation(*engine, architecture, state.shape, state.buffers, arrays);
  const BackwardBuffers work = layOutBackward(*engine, architecture, state.shape, arrays);
  reserveMore(arrays);
  return {buffers, work};
}

}  // namespace rlhf
