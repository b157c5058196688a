#include <algorithm>
#include <cmath>
#include <utility>

#include "model/transformer.h"

namespace rlhf {

void Transformer::tokenStatisticsBackward(const ForwardBuffers& buffers, const BackwardBuffers& work,
                                          const RowSet& rows, int64_t count, double temperature,
                                          const void* lse, const void* entropy,
                                          const PassGradients& upstream) {
  if (!buffers.logits) packed_.prepareHead(PackedWeights::kForward);  // the logits are computed again
  packed_.prepareHead(PackedWeights::kBackward);
  TokenLogProbBackward arguments{.type = engine_.type(),
                                 .rows = rows.rows,
                                 .cols = architecture_.config.hidden,
                                 .vocab = architecture_.config.vocab,
                                 .count = count,
                                 .temperature = temperature,
                                 .lossScale = rows.lossScale};
  arguments.x = buffers.hidden;
  arguments.tokens = buffers.tokens;
  arguments.predictions = buffers.predictions;
  arguments.sources = buffers.sources;
  arguments.head = packed_.head();
  arguments.lse = lse;
  arguments.entropy = entropy;
  arguments.dLogProb = upstream.dLogProb;
  arguments.dLse = upstream.dLse;
  arguments.dEntropy = upstream.dEntropy;
  arguments.logits = buffers.logits;
  arguments.dx = work.dNormed;
  arguments.dWeight = base_.gradient(architecture_.head);
  engine_.run(engine_.ops().tokenLogProbBackward, arguments);
}

void Transformer::tokenLoss(const ForwardBuffers& buffers, TokenLossForwardBackward a, void* dHidden) {
  for (void* output : {a.logProb, a.lse, a.entropy})
    engine_.zero(output, static_cast<size_t>(a.rows) * dtypeSize(engine_.accumulator()));
  packed_.prepareHead(PackedWeights::kForward);
  if (dHidden) packed_.prepareHead(PackedWeights::kBackward);
  a.cols = architecture_.config.hidden;
  a.vocab = architecture_.config.vocab;
  a.x = buffers.hidden;
  a.tokens = buffers.tokens;
  a.predictions = buffers.predictions;
  a.sources = buffers.sources;
  a.head = packed_.head();
  a.dx = dHidden;
  a.dWeight = dHidden ? base_.gradient(architecture_.head) : nullptr;
  engine_.run(engine_.ops().tokenLossForwardBackward, a);
}

void Transformer::backward(const ForwardBuffers& buffers, const BackwardBuffers& work, const RowSet& rows,
                           Adapter* adapter, int lowest, bool recompute) {
  if (recompute) packed_.prepareLinears(PackedWeights::kForward);
  packed_.prepareLinears(PackedWeights::kBackward);
  BackwardStep step{buffers, work, rows, adapter, lowest, work.dStream, work.dNextStream};
  size_t block = buffers.blocks.size();
  if (rows.leftOut > 0) {
    if (!readRowsBackward(step)) return;
    --block;
  } else {
    normBackward(architecture_.finalNorm, rows.rows, buffers.output, buffers.finalMean, buffers.finalRstd,
                 work.dNormed, step.dOutput, false);
  }
  while (block-- > 0) {
    if (recompute) forwardBlock(buffers, rows, block, adapter, nullptr, nullptr);
    if (architecture_.config.parallelResidual) {
      const size_t count = static_cast<size_t>(rows.rows * architecture_.config.hidden);
      // The residual connection's own part, which both branches add to.
      engine_.copy(step.dInput, step.dOutput, count * dtypeSize(engine_.type()));
    }
    if (!mlpBackward(step, block) || !attentionOutBackward(step, block) || !attentionBackward(step, block)) return;
    std::swap(step.dOutput, step.dInput);
  }

  const ModelConfig& config = architecture_.config;
  EmbeddingBackward arguments{.type = engine_.type(),
                              .rows = rows.rows,
                              .cols = config.hidden,
                              .vocab = config.vocab,
                              .maxPositions = config.maxPositions};
  arguments.tokens = buffers.tokens;
  arguments.positions = buffers.positions;
  arguments.dy = step.dOutput;
  arguments.dTable = base_.gradient(architecture_.embedding);
  arguments.dPositionTable = base_.gradient(architecture_.positionEmbedding);
  engine_.run(engine_.ops().embeddingBackward, arguments);
}

bool Transformer::wantsInput(const BackwardStep& step, size_t block, Stage stage) const {
  if (base_.trainable()) return true;
  const std::vector<LinearLayer>& layers = architecture_.blocks[block].stages[stage];
  return step.adapter && step.adapter->group.trainable() &&
         std::any_of(layers.begin(), layers.end(), [&](const LinearLayer& layer) { return step.adapter->adapts(layer); });
}

void Transformer::activateAgain(const BlockBuffers& block, int64_t rows, void* activated) {
  if (architecture_.gatedMlp) return activateGated(block, rows, activated);
  engine_.run(engine_.ops().activationForward, ActivationForward{.type = engine_.type(),
                                                                 .activation = architecture_.config.activation,
                                                                 .count = rows * architecture_.config.intermediate,
                                                                 .x = block.mlpIn,
                                                                 .y = activated});
}

void* Transformer::activationBackward(const BlockBuffers& block, int64_t rows, void* dActivated, void* activated) {
  const int64_t inner = architecture_.config.intermediate;
  if (!architecture_.gatedMlp) {
    engine_.run(engine_.ops().activationBackward, ActivationBackward{.type = engine_.type(),
                                                                     .activation = architecture_.config.activation,
                                                                     .count = rows * inner,
                                                                     .x = block.mlpIn,
                                                                     .dy = dActivated,
                                                                     .dx = dActivated,
                                                                     .y = activated});
    return dActivated;
  }
  engine_.run(engine_.ops().gatedSiluBackward, GatedSiluBackward{.type = engine_.type(),
                                                                 .rows = rows,
                                                                 .cols = inner,
                                                                 .inputStride = 2 * inner,
                                                                 .gate = block.mlpIn,
                                                                 .up = at(block.mlpIn, inner),
                                                                 .dy = dActivated,
                                                                 .dGate = block.mlpIn,
                                                                 .dUp = at(block.mlpIn, inner),
                                                                 .y = activated});
  return block.mlpIn;
}

bool Transformer::mlpBackward(const BackwardStep& step, size_t index) {
  const BlockBuffers& block = step.buffers.blocks[index];
  const int64_t rows = step.rows.rows;
  const int place = static_cast<int>(index) * kStages;
  void* const dActivated = step.work.dActivated;

  // What the last layer read: kept by the forward pass, made again, or not wanted.
  const void* const kept = step.work.activated ? nullptr : block.mlpActivated;
  void* const activated = wantsInput(step, index, kMlpOut) ? step.work.activated : nullptr;
  if (place + kMlpOut == step.lowest) {
    if (activated) activateAgain(block, rows, activated);
    projectBackward(step, index, kMlpOut, activated ? activated : kept, step.dOutput, nullptr);
    return false;
  }
  // It is made again beside the activation's derivative, so gradients that want it come behind that.
  projectBackward(step, index, kMlpOut, kept, step.dOutput, dActivated, activated ? Gradients::OfInput : Gradients::All);
  void* const dMlpIn = activationBackward(block, rows, dActivated, activated);
  if (activated) projectBackward(step, index, kMlpOut, activated, step.dOutput, nullptr, Gradients::OfParameters);
  const void* stream = architecture_.config.parallelResidual ? block.input : block.middle;
  if (step.work.mlpNormed && wantsInput(step, index, kMlpIn))
    norm(architecture_.blocks[index].mlpNorm, rows, stream, step.work.mlpNormed, block.mlpMean, block.mlpRstd);
  projectBackward(step, index, kMlpIn, step.work.mlpNormed ? step.work.mlpNormed : block.mlpNormed, dMlpIn, step.work.dNormed);
  if (place + kMlpIn == step.lowest) return false;
  normBackward(architecture_.blocks[index].mlpNorm, rows, stream, block.mlpMean, block.mlpRstd,
               step.work.dNormed, step.dInput, true);
  return true;
}

bool Transformer::attentionOutBackward(const BackwardStep& step, size_t index) {
  projectBackward(step, index, kAttentionOut, step.buffers.blocks[index].attention, step.dOutput, step.work.dAttention);
  return static_cast<int>(index) * kStages + kAttentionOut != step.lowest;
}

bool Transformer::attentionBackward(const BackwardStep& step, size_t index) {
  const ModelConfig& config = architecture_.config;
  const BlockBuffers& block = step.buffers.blocks[index];
  const int64_t rows = step.rows.rows, stride = architecture_.qkvWidth();
  const int64_t keyColumn = architecture_.queryWidth(), valueColumn = keyColumn + architecture_.keyWidth();
  const int place = static_cast<int>(index) * kStages;

  AttentionBackward attention{.type = engine_.type(),
                              .compute = engine_.compute(),
                              .rows = rows,
                              .sequences = step.rows.sequences,
                              .maxLength = step.rows.maxLength,
                              .heads = config.heads,
                              .kvHeads = config.kvHeads,
                              .headDim = config.headDim,
                              .qStride = stride,
                              .kStride = stride,
                              .vStride = stride,
                              .oStride = architecture_.queryWidth(),
                              .window = architecture_.blocks[index].window,
                              .scale = 1 / std::sqrt(static_cast<double>(config.headDim))};
  attention.offsets = step.buffers.offsets;
  attention.parents = step.buffers.parents;
  attention.q = block.qkv;
  attention.k = at(block.qkv, keyColumn);
  attention.v = at(block.qkv, valueColumn);
  attention.o = block.attention;
  attention.lse = block.attentionLse;
  attention.dO = step.work.dAttention;
  attention.dq = step.work.dQkv;
  attention.dk = at(step.work.dQkv, keyColumn);
  attention.dv = at(step.work.dQkv, valueColumn);
  attention.delta = step.work.delta;
  engine_.run(engine_.ops().attentionBackward, attention);
  rotate(step.buffers, rows, step.work.dQkv, true);
  headNormsBackward(block, architecture_.blocks[index], rows, step.work.dQkv);

  void* const normed = step.work.attentionNormed;
  if (normed && wantsInput(step, index, kQkv))
    norm(architecture_.blocks[index].attentionNorm, rows, block.input, normed, block.attentionMean, block.attentionRstd);
  projectBackward(step, index, kQkv, normed ? normed : block.attentionNormed, step.work.dQkv, step.work.dNormed);
  if (place + kQkv == step.lowest) return false;
  normBackward(architecture_.blocks[index].attentionNorm, rows, block.input, block.attentionMean,
               block.attentionRstd, step.work.dNormed, step.dInput, true);
  return true;
}

void Transformer::normBackward(const NormLayer& layer, int64_t rows, const void* x, const void* mean,
                               const void* rstd, const void* dy, void* dx, bool accumulate) {
  const int64_t hidden = architecture_.config.hidden;
  if (architecture_.norm == NormKind::RmsNorm) {
    engine_.run(engine_.ops().rmsNormBackward, RmsNormBackward{.type = engine_.type(),
                                                               .rows = rows,
                                                               .cols = hidden,
                                                               .accumulateDx = accumulate,
                                                               .x = x,
                                                               .weight = base_.data(layer.weight),
                                                               .rstd = rstd,
                                                               .dy = dy,
                                                               .dx = dx,
                                                               .dWeight = base_.gradient(layer.weight)});
  } else {
    engine_.run(engine_.ops().layerNormBackward, LayerNormBackward{.type = engine_.type(),
                                                                   .rows = rows,
                                                                   .cols = hidden,
                                                                   .accumulateDx = accumulate,
                                                                   .x = x,
                                                                   .weight = base_.data(layer.weight),
                                                                   .mean = mean,
                                                                   .rstd = rstd,
                                                                   .dy = dy,
                                                                   .dx = dx,
                                                                   .dWeight = base_.gradient(layer.weight),
                                                                   .dBias = base_.gradient(layer.bias)});
  }
}

void Transformer::headNormsBackward(const BlockBuffers& buffers, const Block& block, int64_t rows, void* dQkv) {
  if (!architecture_.config.headNorm) return;
  const ModelConfig& config = architecture_.config;
  HeadNormBackward arguments{.type = engine_.type(),
                             .rows = rows,
                             .heads = config.heads,
                             .headDim = config.headDim,
                             .stride = architecture_.qkvWidth()};
  arguments.weight = base_.data(block.queryNorm.weight);
  arguments.normalised = buffers.queryNormalised;
  arguments.rstd = buffers.queryRstd;
  arguments.dx = dQkv;
  arguments.dWeight = base_.gradient(block.queryNorm.weight);
  engine_.run(engine_.ops().headNormBackward, arguments);
  arguments.heads = config.kvHeads;
  arguments.weight = base_.data(block.keyNorm.weight);
  arguments.normalised = buffers.keyNormalised;
  arguments.rstd = buffers.keyRstd;
  arguments.dx = at(dQkv, architecture_.queryWidth());
  arguments.dWeight = base_.gradient(block.keyNorm.weight);
  engine_.run(engine_.ops().headNormBackward, arguments);
}

void Transformer::projectBackward(const BackwardStep& step, size_t block, Stage stage, const void* x,
                                  const void* dy, void* dx, Gradients gradients) {
  const bool wantsDx = gradients != Gradients::OfParameters && static_cast<int>(block) * kStages + stage > step.lowest;
  const bool wantsParameters = gradients != Gradients::OfInput;
  bool first = true;
  for (const LinearLayer& layer : architecture_.blocks[block].stages[stage]) {
    const bool adapted = step.adapter && step.adapter->adapts(layer);
    if (!wantsDx && !(wantsParameters && ((adapted && step.adapter->group.trainable()) || base_.trainable()))) continue;
    LinearBackward arguments{.type = engine_.type(),
                             .rows = step.rows.rows,
                             .inputs = layer.inputs,
                             .outputs = layer.outputs,
                             .xStride = layer.inputs,
                             .dyStride = architecture_.outputWidth(stage),
                             .dxStride = layer.inputs};
    arguments.accumulateDx = !first;
    arguments.x = x;
    arguments.dy = at(dy, layer.column);
    arguments.weight = packed_.linear(layer);
    arguments.dx = wantsDx ? dx : nullptr;
    if (wantsParameters) {
      arguments.dWeight = base_.gradient(layer.weight);
      arguments.dBias = base_.gradient(layer.bias);
    }
    const bool dropped = adapted && step.buffers.rowKeys;
    if (adapted) {
      const Adapter::Layer& factors = step.adapter->layer(layer);
      arguments.lora = step.adapter->factors(layer);
      arguments.loraHidden = step.buffers.loraHidden[static_cast<size_t>(layer.index)];
      arguments.loraGradient = step.work.loraGradient;
      if (wantsParameters) {
        arguments.dA = step.adapter->group.gradient(factors.a);
        arguments.dB = step.adapter->group.gradient(factors.b);
      }
    }
    if (dropped) {
      if (wantsParameters) {
        dropOut(step.buffers, step.rows, *step.adapter, layer, x, step.work.loraInput, false);
        arguments.loraInput = step.work.loraInput;
      }
      arguments.dLoraInput = wantsDx ? step.work.dLoraInput : nullptr;
    }
    engine_.run(engine_.ops().linearBackward, arguments);
    if (dropped && wantsDx) dropOut(step.buffers, step.rows, *step.adapter, layer, step.work.dLoraInput, dx, true);
    first = false;
  }
}

}  // namespace rlhf
