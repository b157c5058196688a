#include <algorithm>

#include "model/batch.h"
#include "model/model_impl.h"

// A forward pass and its backward pass: memory, and the order of the parts.

namespace rlhf {

Pass::Pass() = default;
Pass::~Pass() = default;

int64_t Pass::sequences() const { return state_->rows.sequences; }

void Model::Impl::reserve(DeviceMemory& memory, MemoryUse use, size_t bytes, const char* what) {
  if (bytes <= memory.bytes()) return;
  engine->synchronize();
  memory = DeviceMemory();
  memory = DeviceMemory(*engine, use, bytes, what);
}

char* Model::Impl::reserveWorkspace(size_t bytes) {
  reserve(workspace, MemoryUse::Activations, bytes, "the workspace of a pass");
  return workspace.data();
}

void Model::Impl::reserveScratch(int64_t rows, const Adapter* adapter, const Head* head, int64_t otherWidth,
                                int64_t tableStride) {
  const Architecture& architecture = transformer.architecture();
  ScratchLimits limits;
  limits.rows = rows;
  for (int stage = 0; stage < kStages; ++stage)
    limits.maxWidth =
        std::max({limits.maxWidth, architecture.inputWidth(stage), architecture.outputWidth(stage)});
  if (head) limits.maxWidth = std::max(limits.maxWidth, head->config.inner);
  limits.maxWidth = std::max(limits.maxWidth, otherWidth);
  limits.vocab = config().vocab;
  limits.maxRank = adapter ? adapter->maxRank : 0;
  limits.heads = config().heads;
  limits.kvHeads = config().kvHeads;
  limits.headDim = config().headDim;
  limits.tableStride = tableStride;
  engine->reserveScratch(limits);
}

std::shared_ptr<const KeptDistribution> Model::Impl::referenceOf(const Batch& batch, const ForwardOptions& options) const {
  if (!options.reference) return nullptr;
  const std::shared_ptr<const KeptDistribution> reference = options.reference->state_->distribution;
  const auto fail = [](const std::string& what) { throw Error(code::kArgument, "the reference pass " + what); };
  if (!reference) fail("was made without keepDistribution: true");
  if (!options.statistics) fail("has nothing to be compared with: this pass runs with statistics: false");
  const Model::Impl& other = *reference->model->impl_;
  if (other.engine != engine) fail("is on another engine");
  if (other.config().vocab != config().vocab)
    fail(format("has a vocabulary of %lld tokens, this model one of %lld", static_cast<long long>(other.config().vocab),
                static_cast<long long>(config().vocab)));
  if (reference->temperature != options.temperature)
    fail(format("has temperature %g, this pass %g: give both the same", reference->temperature, options.temperature));
  const Batch& same = reference->batch;
  if (same.tokens != batch.tokens || same.offsets != batch.offsets || same.parents != batch.parents ||
      same.predictions != batch.predictions)
    fail("is of another batch, or predicts other tokens of it: run both on the same one, with the same `predict`");
  return reference;
}

std::shared_ptr<const KeptDistribution> Model::Impl::keepDistribution(const Pass::State& state, const Batch& batch,
                                                                      const void* lse,
                                                                      const std::shared_ptr<Model>& self) {
  auto kept = std::make_shared<KeptDistribution>();
  kept->model = self;
  kept->memory = passMemory;
  kept->batch = batch;
  kept->temperature = state.temperature;
  BufferLayout sizes;
  const auto layOut = [&](BufferLayout& layout, int64_t rows) {
    kept->hidden = layout.reserve(rows * config().hidden, dtypeSize(engine->type()));
    kept->lse = layout.reserve(rows, dtypeSize(engine->accumulator()));
  };
  layOut(sizes, state.shape.rows);
  kept->block = passMemory->distributions.borrow(sizes.bytes());
  BufferLayout arrays(kept->block.data());
  layOut(arrays, state.shape.rows);
  const auto rows = static_cast<size_t>(state.rows.rows);
  engine->copy(kept->hidden, state.buffers.hidden, rows * static_cast<size_t>(config().hidden) * dtypeSize(engine->type()));
  engine->copy(kept->lse, lse, rows * dtypeSize(engine->accumulator()));
  return kept;
}

Reference Model::Impl::reference(const Pass::State& state) const {
  const KeptDistribution& kept = *state.reference;
  Model::Impl& other = *kept.model->impl_;
  return {state.klDirection, kept.hidden, other.config().hidden, kept.lse, other.transformer.preparedHead()};
}

std::unique_ptr<Pass> Model::Impl::start(const Batch& batch, const ForwardOptions& options) {
  validateBatch(batch, config());
  if (!(options.temperature > 0))
    throw Error(code::kArgument, format("temperature must be above 0, got %g", options.temperature));
  if (options.keepDistribution && !options.statistics)
    throw Error(code::kArgument, "keepDistribution keeps what token statistics are made from: leave statistics: false out");
  if (options.grad && passMemory->live >= passMemory->maxLive)
    throw Error(code::kPassLive, format("%lld passes with gradients are alive, as many as were planned for: "
                                        "call backward() or dispose() on one",
                                        static_cast<long long>(passMemory->live)));
  std::unique_ptr<Pass> pass(new Pass());
  pass->state_ = std::make_unique<Pass::State>(passMemory);
  Pass::State& state = *pass->state_;
  state.grad = options.grad;
  state.keepLogits = options.keepLogits;
  state.rows = {batch.rows(), batch.sequences(), 0};
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s)
    state.rows.maxLength = std::max<int64_t>(state.rows.maxLength, batch.offsets[s + 1] - batch.offsets[s]);
  state.predictions = options.statistics ? static_cast<int64_t>(batch.predictions.size()) : 0;
  state.temperature = options.temperature;
  state.adapter = adapter(options.adapter);
  state.head = head(options.head);
  state.reference = referenceOf(batch, options);
  state.klDirection = options.klDirection;
  const int64_t otherWidth = state.reference ? state.reference->model->impl_->config().hidden : 0;
  state.shape.dropout = options.dropoutSeed && state.adapter && state.adapter->config.dropout > 0;
  state.rows.dropoutSeed = options.dropoutSeed.value_or(0);
  layOut(state, static_cast<int64_t>(batch.predictions.size()));
  reserveScratch(state.shape.rows, state.adapter.get(), state.head.get(), otherWidth);
  state.rows.leftOut = upload(batch, state.buffers, state.head != nullptr);
  transformer.forward(state.buffers, state.rows, state.adapter.get(), nullptr);

  pass->rows_ = state.rows.rows;
  if (state.head) {
    pass->value_ = output(state, 3);
    findValues(state, pass->value_);
  }
  return pass;
}

void Model::Impl::findValues(const Pass::State& state, void* value) {
  const RowSet& rows = state.rows;
  const HeadBuffers& buffers = state.buffers.head;
  // Where the head trains, its backward pass goes through all rows: sums over fewer could have other bits.
  if (rows.leftOut == 0 || state.grad) return state.head->forward(rows.rows, state.buffers.hidden, buffers, value);
  const DType type = engine->accumulator();
  if (rows.read() > 0) state.head->forward(rows.read(), state.buffers.readHidden, buffers, buffers.readValues);
  engine->zero(static_cast<char*>(buffers.readValues) + static_cast<size_t>(rows.read()) * dtypeSize(type), dtypeSize(type));
  transformer.takeRows(type, 1, state.buffers.readPlaces, rows.rows, buffers.readValues, rows.read() + 1, value);
}

void* Model::Impl::output(const Pass::State& state, int number) const {
  const size_t arrayBytes = alignUp(static_cast<size_t>(state.shape.rows) * dtypeSize(engine->accumulator()));
  return state.outputs.data() + static_cast<size_t>(number) * arrayBytes;
}

std::unique_ptr<Pass> Model::Impl::forward(const Batch& batch, const ForwardOptions& options,
                                           const std::shared_ptr<Model>& self) {
  std::unique_ptr<Pass> pass = start(batch, options);
  Pass::State& state = *pass->state_;
  if (options.statistics) {
    pass->logProb_ = output(state, 0);
    pass->lse_ = output(state, 1);
    pass->entropy_ = output(state, 2);
    transformer.tokenStatistics(state.buffers, state.rows, state.predictions, state.temperature,
                                pass->logProb_, pass->lse_, pass->entropy_);
    if (options.keepDistribution) state.distribution = keepDistribution(state, batch, pass->lse_, self);
  }
  if (state.reference) {
    pass->kl_ = output(state, 4);
    transformer.klDivergence(state.buffers, state.rows, state.predictions, state.temperature, pass->lse_,
                             reference(state), pass->kl_);
  }
  return pass;
}

/// Not where all weights train: their sums over rows would be grouped otherwise, and have other bits. Masks of dropout are by row, and what
/// is computed again, or beside attention, would need more arrays.
bool Model::Impl::leavesRowsOutOfBackward(const PassShape& shape) const {
  const bool apart = !transformer.architecture().config.parallelResidual;
  return !transformer.base().trainable() && apart && !shape.dropout && !shape.recompute;
}

void Model::Impl::layOut(Pass::State& state, int64_t predictions) {
  const Architecture& architecture = transformer.architecture();
  const int blocks = static_cast<int>(architecture.blocks.size());
  PassShape& shape = state.shape;
  shape.rows = roundedCapacity(state.rows.rows);
  shape.sequences = roundedCapacity(state.rows.sequences);
  shape.predictions = roundedCapacity(predictions);
  shape.adapter = state.adapter.get();
  shape.head = state.head.get();
  state.lowest = transformer.lowestTrainable(shape.adapter);
  shape.firstSavedBlock = state.grad ? std::max(state.lowest, 0) / kStages : blocks;
  shape.recompute = recomputeLayers && shape.firstSavedBlock < blocks;
  shape.selectsRows = shape.firstSavedBlock == blocks ? !shape.dropout : leavesRowsOutOfBackward(shape);
  const size_t bytesOfLogits = logitsBytes(*engine, architecture, shape.predictions);
  shape.keepLogits =
      state.keepLogits && shape.firstSavedBlock < blocks && state.predictions > 0 && bytesOfLogits <= logitsBudget;

  BufferLayout kept, work;
  layOutForward(*engine, architecture, shape, kept, state.grad ? work : kept);
  if (state.grad) {
    state.activations = passMemory->activations.borrow(kept.bytes());
    if (shape.keepLogits) state.logits = passMemory->logits.borrow(bytesOfLogits);
    state.holdsActivations = true;
    ++passMemory->live;
    BufferLayout keptArrays(state.activations.data()), workArrays(reserveWorkspace(work.bytes()));
    state.buffers = layOutForward(*engine, architecture, shape, keptArrays, workArrays);
    state.buffers.logits = state.logits.data();
  } else {
    BufferLayout arrays(reserveWorkspace(kept.bytes()));
    state.buffers = layOutForward(*engine, architecture, shape, arrays, arrays);
  }
  const size_t arrays = state.reference ? 5 : 4;
  state.outputs = passMemory->outputs.borrow(
      arrays * alignUp(static_cast<size_t>(shape.rows) * dtypeSize(engine->accumulator())));
}

int64_t Model::Impl::upload(const Batch& batch, const ForwardBuffers& buffers, bool values) {
  const BatchRows rows(batch);
  const auto copy = [&](auto* destination, const auto& source) {
    engine->upload(destination, source.data(), source.size() * sizeof(source[0]));
  };
  copy(buffers.tokens, batch.tokens);
  copy(buffers.positions, rows.positions);
  copy(buffers.offsets, batch.offsets);
  copy(buffers.parents, rows.parents);
  copy(buffers.predictions, rows.predictions);
  copy(buffers.sources, rows.sources);
  if (buffers.rowKeys) copy(buffers.rowKeys, prefixKeys(batch));
  if (!buffers.readRows) return 0;
  const ReadRows read(batch, rows.sources, values);
  copy(buffers.readRows, read.rows);
  copy(buffers.readPlaces, read.places);
  return read.leftOut;
}

bool Model::Impl::reachesBase(const Pass::State& state) const {
  return state.shape.firstSavedBlock < static_cast<int>(transformer.architecture().blocks.size());
}

void Model::Impl::setLossScale(Pass::State& state) {
  state.rows.lossScale = lossScale.value();
  for (ParameterGroup* group : groups()) group->bringToScale(lossScale.value());
}

void Model::Impl::requireActivations(const Pass::State& state) {
  if (!state.grad) throw Error(code::kArgument, "backward() needs a pass that was made with grad: true");
  if (!state.holdsActivations)
    throw Error(code::kPassConsumed, "this pass was consumed by an earlier backward(): run forward() again");
}

void Model::Impl::backward(Pass& pass, const PassGradients& gradients) {
  Pass::State& state = *pass.state_;
  requireActivations(state);
  if (gradients.dValue && !state.head)
    throw Error(code::kArgument, "dValue was given, but the pass was made without a head");
  if (gradients.dKl && !state.reference)
    throw Error(code::kArgument, "dKl was given, but the pass was made without a reference");
  const bool divergence = state.predictions > 0 && gradients.dKl;
  const bool statistics =
      state.predictions > 0 && (gradients.dLogProb || gradients.dLse || gradients.dEntropy);
  const bool reachesBase = this->reachesBase(state);
  setLossScale(state);
  const auto [buffers, work] = layOutBackwardPass(state, [](BufferLayout&) {});
  reserveScratch(state.shape.rows, state.adapter.get(), state.head.get(),
                 divergence ? state.reference->model->impl_->config().hidden : 0);

  if (gradients.dValue) {
    state.head->backward(state.rows, state.buffers.hidden, state.buffers.head, gradients.dValue,
                         work.head, reachesBase ? work.dNormed : nullptr);
  } else if (statistics || divergence) {
    engine->zero(work.dNormed,
                 static_cast<size_t>(state.rows.rows * config().hidden) * dtypeSize(engine->type()));
  }
  if (reachesBase && divergence)
    transformer.klDivergenceBackward(state.buffers, work, state.rows, state.predictions, state.temperature, pass.lse_,
                                     reference(state), pass.kl_, gradients.dKl);
  if (reachesBase && statistics)
    transformer.tokenStatisticsBackward(state.buffers, work, state.rows, state.predictions, state.temperature,
                                        pass.lse_, pass.entropy_, gradients);
  if (reachesBase && (statistics || divergence || gradients.dValue))
    transformer.backward(buffers, work, state.rows, state.adapter.get(), state.lowest, state.shape.recompute);
  state.releaseActivations();
}

}  // namespace rlhf
