#include <algorithm>

#include "model/model_impl.h"

// A training pass with its losses inside.

namespace rlhf {
namespace {

// 64 MiB of float32 logits. Fewer predictions than 256 at a time would read the head too often for what they compute, more than 1024
// gain nothing.
constexpr int64_t kLogitsPerLossBlock = int64_t{16} << 20;
constexpr int64_t kFewestPredictions = 256, kMostPredictions = 1024;

int64_t ceilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// What the losses leave for the backward pass, beside its own arrays.
struct LossArrays {
  void *dLogProb = nullptr, *dEntropy = nullptr, *dValue = nullptr;  // [N]
  void *stats = nullptr, *valueStats = nullptr;

  LossArrays() = default;
  /// All that any loss needs, so that passes take the same memory whatever theirs is.
  LossArrays(BufferLayout& layout, const Engine& engine, int64_t rows) {
    const size_t element = dtypeSize(engine.accumulator());
    for (void** array : {&dLogProb, &dEntropy, &dValue}) *array = layout.reserve(rows, element);
    for (void** sums : {&stats, &valueStats}) *sums = layout.reserve(kMostStats, element);
  }

  static constexpr int64_t kMostStats = 8;
  static_assert(TokenNllLoss::kStatCount <= kMostStats && PpoPolicyLoss::kStatCount <= kMostStats &&
                GroupPolicyLoss::kStatCount <= kMostStats && PpoValueLoss::kStatCount <= kMostStats);
};

void requireLossInside(const ForwardOptions& options) {
  if (!options.statistics || options.keepDistribution || options.reference)
    throw Error(code::kArgument, "forwardBackward has token statistics and no reference: use forward and backward");
}

}  // namespace

bool Model::Impl::keepsBlockLogits() const { return engine->compute() != DType::BF16; }

int64_t Model::Impl::predictionsPerLossBlock() const {
  const int64_t fit = std::clamp(kLogitsPerLossBlock / config().vocab, kFewestPredictions, kMostPredictions);
  const size_t each = logitsBytes(*engine, transformer.architecture(), 1);
  return std::max<int64_t>(1, std::min(fit, static_cast<int64_t>(logitsBudget / each)));
}

std::unique_ptr<Pass> Model::Impl::forwardBackward(const Batch& batch, const ForwardOptions& options, const PassLosses& losses,
                                                   LossSums& sums) {
  requireLossInside(options);
  ForwardOptions training = options;
  training.grad = true;
  training.keepLogits = false;
  std::unique_ptr<Pass> pass = start(batch, training);
  lossBackward(*pass, losses, sums);
  pass->state_->grad = false;
  return pass;
}

void Model::Impl::lossBackward(Pass& pass, const PassLosses& losses, LossSums& sums) {
  Pass::State& state = *pass.state_;
  requireActivations(state);
  if (losses.value && !state.head)
    throw Error(code::kArgument, "a value loss was given, but no head: name one in the options");
  const bool reachesBase = this->reachesBase(state);
  setLossScale(state);
  reserveScratch(state.shape.rows, state.adapter.get(), state.head.get());
  LossArrays loss;
  const auto [buffers, work] = layOutBackwardPass(state, [&](BufferLayout& layout) {
    loss = LossArrays(layout, *engine, state.shape.rows);
  });

  if (losses.value) {
    PpoValueLoss value = *losses.value;
    value.type = engine->accumulator(), value.rows = state.rows.rows;
    value.value = pass.value_, value.dValue = loss.dValue, value.stats = loss.valueStats;
    engine->run(engine->ops().ppoValueLoss, value);
    state.head->backward(state.rows, state.buffers.hidden, state.buffers.head, loss.dValue, work.head,
                         reachesBase ? work.dNormed : nullptr);
  } else if (reachesBase) {
    engine->zero(work.dNormed, static_cast<size_t>(state.rows.rows * config().hidden) * dtypeSize(engine->type()));
  }

  TokenLossForwardBackward token{.type = engine->type(), .rows = state.rows.rows, .count = state.predictions,
                                 .temperature = state.temperature, .lossScale = state.rows.lossScale};
  const int64_t most = keepsBlockLogits() ? predictionsPerLossBlock() : std::max<int64_t>(1, state.predictions);
  const bool keepsLogits = reachesBase && state.predictions > 0 && keepsBlockLogits();
  if (keepsLogits && !state.logits.data())
    state.logits = passMemory->logits.borrow(
        logitsBytes(*engine, transformer.architecture(), std::min(most, state.shape.predictions)));
  token.blockRows = std::max<int64_t>(1, ceilDivide(token.count, std::max<int64_t>(1, ceilDivide(token.count, most))));
  token.loss = losses.token;
  token.loss.sequences = state.rows.sequences, token.loss.offsets = state.buffers.offsets;
  token.logProb = pass.logProb_ = output(state, 0);
  token.lse = pass.lse_ = output(state, 1);
  token.entropy = pass.entropy_ = output(state, 2);
  token.dLogProb = loss.dLogProb, token.dEntropy = loss.dEntropy, token.stats = loss.stats;
  token.logits = keepsLogits ? state.logits.data() : nullptr;
  transformer.tokenLoss(state.buffers, token, reachesBase ? work.dNormed : nullptr);
  if (reachesBase)
    transformer.backward(buffers, work, state.rows, state.adapter.get(), state.lowest, state.shape.recompute);

  const auto read = [&](std::vector<float>& into, const void* from, int count) {
    into.resize(static_cast<size_t>(count));
    engine->download(into.data(), from, into.size() * sizeof(float));
  };
  read(sums.token, loss.stats, losses.token.statCount());
  if (losses.value) read(sums.value, loss.valueStats, PpoValueLoss::kStatCount);
  engine->synchronize();
  state.releaseActivations();
}

}  // namespace rlhf
