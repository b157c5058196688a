#include "model/buffers.h"

#include <algorithm>
#include <bit>

#include "model/adapter.h"
#include "model/head.h"

namespace rlhf {
namespace {

/// Whether a saved block's activated numbers can be made again, bit for bit: of a plain activation only what it was applied to may
/// have been rounded, those of a gated MLP are made of numbers in memory.
bool activatesAgain(const Engine& engine, const Architecture& architecture) {
  return architecture.gatedMlp || engine.type() == engine.accumulator();
}

/// Reserves the arrays of one block; `input` is given, `middle` is the input itself where nothing is saved. What backward passes make again
/// stands in the block `passing`, where one is given.
BlockBuffers layOutBlock(const Engine& engine, const Architecture& architecture, int64_t rows, void* input,
                         bool saved, BufferLayout& layout, const BlockBuffers* passing = nullptr) {
  const size_t element = dtypeSize(engine.type()), statistic = dtypeSize(engine.accumulator());
  const int64_t hidden = architecture.config.hidden;
  const bool centred = architecture.norm == NormKind::LayerNorm;
  BlockBuffers block;
  block.input = input;
  block.attentionNormed = passing ? passing->attentionNormed : layout.reserve(rows * hidden, element);
  if (centred) block.attentionMean = layout.reserve(rows, statistic);
  block.attentionRstd = layout.reserve(rows, statistic);
  if (saved && architecture.config.headNorm) {
    block.queryNormalised = layout.reserve(rows * architecture.queryWidth(), element);
    block.queryRstd = layout.reserve(rows * architecture.config.heads, statistic);
    block.keyNormalised = layout.reserve(rows * architecture.keyWidth(), element);
    block.keyRstd = layout.reserve(rows * architecture.config.kvHeads, statistic);
  }
  block.attentionLse = layout.reserve(rows * architecture.config.heads, statistic);
  block.middle = saved ? layout.reserve(rows * hidden, element) : input;
  block.mlpNormed = saved && !passing ? layout.reserve(rows * hidden, element) : block.attentionNormed;
  if (centred) block.mlpMean = layout.reserve(rows, statistic);
  block.mlpRstd = layout.reserve(rows, statistic);
  const size_t begin = layout.mark();
  block.qkv = layout.reserve(rows * architecture.qkvWidth(), element);
  block.attention = layout.reserve(rows * architecture.queryWidth(), element);
  const size_t end = layout.mark();
  if (!saved) layout.release(begin);  // what attention leaves has been added to the stream before the MLP begins
  // Without a backward pass the value before a plain activation is never read.
  if (saved || architecture.gatedMlp) block.mlpIn = layout.reserve(rows * architecture.mlpInWidth(), element);
  const bool passes = passing && activatesAgain(engine, architecture);
  block.mlpActivated = passes ? passing->mlpActivated : layout.reserve(rows * architecture.config.intermediate, element);
  layout.release(std::max(end, layout.mark()));
  return block;
}

int64_t capacityStep(int64_t count) {
  const uint64_t positive = static_cast<uint64_t>(std::max<int64_t>(count, 1));
  return std::max<int64_t>(8, static_cast<int64_t>(std::bit_floor(positive)) / 8);
}

}  // namespace

int64_t roundedCapacity(int64_t count) {
  const int64_t step = capacityStep(count);
  return (std::max<int64_t>(count, 1) + step - 1) / step * step;
}

int64_t roundedDownCapacity(int64_t count) {
  const int64_t step = capacityStep(count);
  return std::max<int64_t>(count, 0) / step * step;
}

ForwardBuffers layOutForward(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                             BufferLayout& kept, BufferLayout& work) {
  const size_t element = dtypeSize(engine.type()), statistic = dtypeSize(engine.accumulator());
  const int64_t rows = shape.rows, hidden = architecture.config.hidden;
  const int blockCount = static_cast<int>(architecture.blocks.size());
  ForwardBuffers buffers;
  buffers.tokens = kept.array<int32_t>(rows);
  buffers.positions = kept.array<int32_t>(rows);
  buffers.offsets = kept.array<int32_t>(shape.sequences + 1);
  buffers.parents = kept.array<int32_t>(shape.sequences);
  buffers.predictions = kept.array<int32_t>(shape.predictions);
  buffers.sources = kept.array<int32_t>(shape.predictions);
  if (shape.selectsRows) {
    buffers.readRows = kept.array<int32_t>(rows);
    buffers.readPlaces = kept.array<int32_t>(rows);
    if (shape.head) buffers.head.readValues = kept.reserve(rows, statistic);
  }

  BlockBuffers shared;
  const bool shares = shape.firstSavedBlock > 0 || shape.recompute;
  if (shares) {
    void* stream = shape.firstSavedBlock > 0 ? work.reserve(rows * hidden, element) : nullptr;
    shared = layOutBlock(engine, architecture, rows, stream, false, work);
  } else {
    shared.attentionNormed = work.reserve(rows * hidden, element);
    if (activatesAgain(engine, architecture)) shared.mlpActivated = work.reserve(rows * architecture.config.intermediate, element);
  }
  for (int block = 0; block < blockCount; ++block) {
    const bool saved = block >= shape.firstSavedBlock;
    void* input = saved ? kept.reserve(rows * hidden, element) : shared.input;
    buffers.blocks.push_back(saved && !shape.recompute
                                 ? layOutBlock(engine, architecture, rows, input, true, kept, &shared)
                                 : shared);
    buffers.blocks.back().input = input;
  }
  const bool savesAny = shape.firstSavedBlock < blockCount;
  buffers.output = savesAny ? kept.reserve(rows * hidden, element) : shared.input;
  if (shape.recompute)
    for (int block = shape.firstSavedBlock; block < blockCount; ++block) {
      const size_t next = static_cast<size_t>(block) + 1;
      buffers.blocks[next - 1].middle = block + 1 < blockCount ? buffers.blocks[next].input : buffers.output;
    }
  if (architecture.norm == NormKind::LayerNorm) buffers.finalMean = kept.reserve(rows, statistic);
  buffers.finalRstd = kept.reserve(rows, statistic);
  buffers.hidden = kept.reserve(rows * hidden, element);
  if (savesAny && shape.selectsRows) {
    buffers.readHidden = work.reserve(rows * hidden, element);
    buffers.readAttention = work.reserve(rows * architecture.queryWidth(), element);
  } else {  // nobody needs the stream of all rows, and their queries, once what is read was taken
    buffers.readHidden = shared.input;
    buffers.readAttention = shared.qkv;
  }

  if (shape.adapter) {
    const Adapter& adapter = *shape.adapter;
    buffers.loraHidden.resize(static_cast<size_t>(architecture.linears), nullptr);
    void* sharedHidden = shares ? work.reserve(rows * adapter.maxRank, element) : nullptr;
    architecture.forEachLinear([&](int block, Stage stage, const LinearLayer& layer) {
      if (!adapter.adapts(layer)) return;
      const bool keeps = block >= shape.firstSavedBlock && (!shape.recompute || stage == kMlpOut);
      buffers.loraHidden[static_cast<size_t>(layer.index)] =
          keeps ? kept.reserve(rows * adapter.layer(layer).rank, element) : sharedHidden;
    });
    if (shape.dropout) {
      buffers.rowKeys = kept.array<int64_t>(rows);
      buffers.loraInput = work.reserve(rows * adapter.maxInputs, element);
    }
  }
  if (shape.head && shape.head->config.inner > 0) {
    buffers.head.preActivation = kept.reserve(rows * shape.head->config.inner, element);
    buffers.head.activated = kept.reserve(rows * shape.head->config.inner, element);
  }
  return buffers;
}

size_t logitsBytes(const Engine& engine, const Architecture& architecture, int64_t predictions) {
  return static_cast<size_t>(predictions * architecture.config.vocab) * dtypeSize(engine.accumulator());
}

ForwardBuffers layOutRecomputation(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                                   const ForwardBuffers& forward, BufferLayout& work) {
  ForwardBuffers buffers = forward;
  if (!shape.recompute) return buffers;
  const size_t element = dtypeSize(engine.type());
  const BlockBuffers set = layOutBlock(engine, architecture, shape.rows, nullptr, true, work);
  if (shape.dropout) buffers.loraInput = work.reserve(shape.rows * shape.adapter->maxInputs, element);
  std::vector<void*> hidden;  // x·Aᵀ by the adapted layer's number in its block
  for (size_t block = static_cast<size_t>(shape.firstSavedBlock); block < buffers.blocks.size(); ++block) {
    void* input = buffers.blocks[block].input;
    buffers.blocks[block] = set;
    buffers.blocks[block].input = input;
    if (!shape.adapter) continue;
    size_t number = 0;
    for (int stage = 0; stage < kMlpOut; ++stage)
      for (const LinearLayer& layer : architecture.blocks[block].stages[static_cast<size_t>(stage)]) {
        if (!shape.adapter->adapts(layer)) continue;
        if (number == hidden.size())
          hidden.push_back(work.reserve(shape.rows * shape.adapter->maxRank, element));
        buffers.loraHidden[static_cast<size_t>(layer.index)] = hidden[number++];
      }
  }
  return buffers;
}

BackwardBuffers layOutBackward(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                               BufferLayout& work) {
  const size_t element = dtypeSize(engine.type()), statistic = dtypeSize(engine.accumulator());
  const int64_t rows = shape.rows, hidden = architecture.config.hidden;
  BackwardBuffers buffers;
  buffers.dStream = work.reserve(rows * hidden, element);
  buffers.dNextStream =
      architecture.config.parallelResidual ? work.reserve(rows * hidden, element) : buffers.dStream;
  buffers.dNormed = work.reserve(rows * hidden, element);
  if (shape.adapter) buffers.loraGradient = work.reserve(rows * shape.adapter->maxRank, element);
  if (shape.dropout) {
    buffers.loraInput = work.reserve(rows * shape.adapter->maxInputs, element);
    buffers.dLoraInput = work.reserve(rows * shape.adapter->maxInputs, element);
  }
  if (shape.head && element != statistic) buffers.head.dValue = work.reserve(rows, element);
  if (shape.head && shape.head->config.inner > 0) buffers.head.dInner = work.reserve(rows * shape.head->config.inner, element);
  const size_t mark = work.mark();
  if (shape.selectsRows) buffers.dReadNormed = work.reserve(rows * hidden, element);
  work.release(mark);  // used up before the MLP's gradient begins
  buffers.dActivated = work.reserve(rows * architecture.config.intermediate, element);
  const size_t inner = work.mark();
  if (!shape.recompute && activatesAgain(engine, architecture))
    buffers.activated = work.reserve(rows * architecture.config.intermediate, element);
  work.release(inner);  // used up before the input of the layers below is wanted
  if (!shape.recompute) buffers.mlpNormed = work.reserve(rows * hidden, element);
  const size_t end = work.bytes();
  work.release(mark);  // the MLP's gradient is used up before attention's begins
  buffers.dAttention = work.reserve(rows * architecture.queryWidth(), element);
  buffers.dQkv = work.reserve(rows * architecture.qkvWidth(), element);
  buffers.delta = work.reserve(rows * architecture.config.heads, statistic);
  if (!shape.recompute) buffers.attentionNormed = work.reserve(rows * hidden, element);
  work.release(std::max(end, work.mark()));  // what is reserved next outlives both
  return buffers;
}

}  // namespace rlhf
