#include "model/transformer.h"

namespace rlhf {

template <class Arguments>
Arguments Transformer::divergenceArguments(const ForwardBuffers& buffers, const RowSet& rows, int64_t count, double temperature,
                                           const void* lse, const Reference& reference) {
  if (!buffers.logits) packed_.prepareHead(PackedWeights::kForward);
  Arguments arguments{.type = engine_.type(),
                      .rows = rows.rows,
                      .cols = architecture_.config.hidden,
                      .refCols = reference.cols,
                      .vocab = architecture_.config.vocab,
                      .count = count,
                      .temperature = temperature,
                      .direction = reference.direction};
  arguments.x = buffers.hidden;
  arguments.refX = reference.hidden;
  arguments.predictions = buffers.predictions;
  arguments.sources = buffers.sources;
  arguments.head = packed_.head();
  arguments.refHead = reference.head;
  arguments.lse = lse;
  arguments.refLse = reference.lse;
  arguments.logits = buffers.logits;
  return arguments;
}

void Transformer::klDivergence(const ForwardBuffers& buffers, const RowSet& rows, int64_t count, double temperature,
                               const void* lse, const Reference& reference, void* kl) {
  engine_.zero(kl, static_cast<size_t>(rows.rows) * dtypeSize(engine_.accumulator()));
  if (count == 0) return;
  auto arguments = divergenceArguments<KlDivergenceForward>(buffers, rows, count, temperature, lse, reference);
  arguments.kl = kl;
  engine_.run(engine_.ops().klDivergenceForward, arguments);
}

void Transformer::klDivergenceBackward(const ForwardBuffers& buffers, const BackwardBuffers& work, const RowSet& rows,
                                       int64_t count, double temperature, const void* lse, const Reference& reference,
                                       const void* kl, const void* dKl) {
  packed_.prepareHead(PackedWeights::kBackward);
  auto arguments = divergenceArguments<KlDivergenceBackward>(buffers, rows, count, temperature, lse, reference);
  arguments.lossScale = rows.lossScale;
  arguments.kl = kl;
  arguments.dKl = dKl;
  arguments.dx = work.dNormed;
  arguments.dWeight = base_.gradient(architecture_.head);
  engine_.run(engine_.ops().klDivergenceBackward, arguments);
}

}  // namespace rlhf
