#include "model/transformer.h"

// The end of a pass of which not every row is read. Keys and values of the last block are wanted of all rows, and so is the
// attention that reads them, a small part of a block; what follows works on each row by itself, and is left out where nobody reads it.

namespace rlhf {

void Transformer::finishReadRows(const ForwardBuffers& buffers, const RowSet& rows, const Adapter* adapter) {
  const int64_t hidden = architecture_.config.hidden, read = rows.read();
  const BlockBuffers& all = buffers.blocks.back();
  ForwardBuffers few = buffers;
  BlockBuffers& block = few.blocks.back();
  if (all.middle == all.input) {  // nothing is kept: the stream goes where attention's input was, since it cannot shrink in place
    block.middle = few.output = all.attentionNormed;
    block.mlpNormed = buffers.readHidden;
  }
  block.input = block.middle;
  block.attention = buffers.readAttention;
  few.hidden = buffers.readHidden;
  if (read > 0) {
    takeRead(buffers, rows, architecture_.queryWidth(), all.attention, block.attention);
    takeRead(buffers, rows, hidden, all.input, block.input);
    finishBlock(few, rows.readAlone(), buffers.blocks.size() - 1, adapter, few.output);
    norm(architecture_.finalNorm, read, few.output, few.hidden, few.finalMean, few.finalRstd);
  }
  putBack(buffers, rows, hidden, few.hidden, buffers.hidden);
}

bool Transformer::readRowsBackward(const BackwardStep& step) {
  const ForwardBuffers& buffers = step.buffers;
  const BackwardBuffers& work = step.work;
  const int64_t hidden = architecture_.config.hidden, read = step.rows.read();
  const size_t last = buffers.blocks.size() - 1;
  if (read == 0) return false;
  takeRead(buffers, step.rows, hidden, work.dNormed, work.dReadNormed);
  normBackward(architecture_.finalNorm, read, buffers.output, buffers.finalMean, buffers.finalRstd, work.dReadNormed, work.dStream,
               false);
  // Of these rows alone, until attention is reached: its output again, and its gradient where that of the queries will be.
  ForwardBuffers few = buffers;
  few.blocks.back().attention = work.dAttention;
  BackwardBuffers fewWork = work;
  fewWork.dAttention = work.dQkv;
  const BackwardStep those{few, fewWork, step.rows.readAlone(), step.adapter, step.lowest, work.dStream, work.dStream};
  if (!mlpBackward(those, last)) return false;
  takeRead(buffers, step.rows, architecture_.queryWidth(), buffers.blocks.back().attention, work.dAttention);
  if (!attentionOutBackward(those, last)) return false;
  putBack(buffers, step.rows, architecture_.queryWidth(), work.dQkv, work.dAttention);
  putBack(buffers, step.rows, hidden, work.dStream, work.dNormed);
  engine_.copy(work.dStream, work.dNormed, static_cast<size_t>(step.rows.rows * hidden) * dtypeSize(engine_.type()));
  return attentionBackward(step, last);
}

void Transformer::takeRead(const ForwardBuffers& buffers, const RowSet& rows, int64_t width, const void* all, void* read) {
  takeRows(engine_.type(), width, buffers.readRows, rows.read(), all, rows.rows, read);
}

void Transformer::putBack(const ForwardBuffers& buffers, const RowSet& rows, int64_t width, void* read, void* all) {
  engine_.zero(at(read, rows.read() * width), static_cast<size_t>(width) * dtypeSize(engine_.type()));
  takeRows(engine_.type(), width, buffers.readPlaces, rows.rows, read, rows.read() + 1, all);
}

void Transformer::takeRows(DType type, int64_t width, const int32_t* rows, int64_t count, const void* from, int64_t available,
                           void* to) {
  EmbeddingForward arguments{.type = type, .tableType = type, .rows = count, .cols = width, .vocab = available};
  arguments.tokens = rows;
  arguments.table = from;
  arguments.y = to;
  engine_.run(engine_.ops().embeddingForward, arguments);
}

}  // namespace rlhf
