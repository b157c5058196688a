#pragma once
#include <map>
#include <memory>
#include <string>

#include "model/merge.h"
#include "model/pass_state.h"

namespace rlhf {

struct Model::Impl {
  Impl(std::shared_ptr<Engine> sharedEngine, const ModelConfig& config, bool trainable, DType storage)
      : engine(std::move(sharedEngine)),
        transformer(*engine, config, trainable, storage),
        passMemory(std::make_shared<PassMemory>(engine)) {}

  struct ParameterPlace {
    ParameterGroup& group;
    int index;
  };

  std::shared_ptr<Engine> engine;
  Transformer transformer;
  std::map<std::string, std::shared_ptr<Adapter>> adapters;
  std::map<std::string, std::shared_ptr<Head>> heads;
  std::string mergedName;  // of the adapter that is merged and can be unmerged
  std::unique_ptr<MergedAdapter> merged;
  std::shared_ptr<PassMemory> passMemory;
  DeviceMemory workspace;         // arrays that live no longer than one call
  DeviceMemory generationMemory;  // key/value cache, logits and inputs of the sequences being decoded
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
  void reserveScratch(int64_t rows, const Adapter* adapter, const Head* head, int64_t otherWidth = 0);
  /// The workspace, at least so large.
  char* reserveWorkspace(size_t bytes);
  void reserve(DeviceMemory& memory, MemoryUse use, size_t bytes, const char* what);

  /// `self` is this model, for passes that others refer to.
  std::unique_ptr<Pass> forward(const Batch& batch, const ForwardOptions& options, const std::shared_ptr<Model>& self);
  void backward(Pass& pass, const PassGradients& gradients);
  /// Copies a batch to a pass's arrays.
  void upload(const Batch& batch, const ForwardBuffers& buffers);

 private:
  void layOut(Pass::State& state, int64_t predictions);
  /// The distribution that a pass on this batch is to be compared with; null without one. Throws ERR_RLHF_ARGUMENT where the two
  /// do not fit together.
  std::shared_ptr<const KeptDistribution> referenceOf(const Batch& batch, const ForwardOptions& options) const;
  std::shared_ptr<const KeptDistribution> keepDistribution(const Pass::State& state, const Batch& batch, const void* lse,
                                                           const std::shared_ptr<Model>& self);
  Reference reference(const Pass::State& state) const;
};

}  // namespace rlhf
