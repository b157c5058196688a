#include <cmath>
#include <complex>

#include "model/transformer.h"

namespace rlhf {

Transformer::Transformer(Engine& engine, const ModelConfig& config, bool trainable, DType storage)
    : engine_(engine), base_("base", trainable), architecture_(config, base_), packed_(architecture_, base_) {
  packed_.plan(engine, storage);
  base_.allocate(engine, storage);
  packed_.allocate();
  if (architecture_.rotary() > 0) makeRotaryTables();
}

namespace {

template <class Element>
std::vector<char> converted(const std::vector<double>& values) {
  const std::vector<Element> elements(values.begin(), values.end());
  const char* bytes = reinterpret_cast<const char*>(elements.data());
  return {bytes, bytes + elements.size() * sizeof(Element)};
}

std::vector<char> convertedTo(DType type, const std::vector<double>& values) {
  if (type == DType::F64) return converted<double>(values);
  if (type == DType::C128) return converted<std::complex<double>>(values);
  return converted<float>(values);
}

}  // namespace

void Transformer::makeRotaryTables() {
  const ModelConfig& config = architecture_.config;
  const int64_t half = architecture_.rotary() / 2;
  const size_t count = static_cast<size_t>(config.maxPositions * half);
  const size_t bytes = count * dtypeSize(engine_.accumulator());
  rotaryTables_ = DeviceMemory(engine_, MemoryUse::Weights, alignUp(bytes) + bytes, "rotary position tables");
  cosine_ = rotaryTables_.data();
  sine_ = rotaryTables_.data() + alignUp(bytes);
  if (engine_.plans()) return;
  std::vector<double> cosines(count), sines(count);
  for (size_t index = 0; index < count; ++index) {
    const double angle = static_cast<double>(index / static_cast<size_t>(half)) *
                         config.inverseFrequencies[index % static_cast<size_t>(half)];
    cosines[index] = config.rotaryScale * std::cos(angle);
    sines[index] = config.rotaryScale * std::sin(angle);
  }
  engine_.upload(cosine_, convertedTo(engine_.accumulator(), cosines).data(), bytes);
  engine_.upload(sine_, convertedTo(engine_.accumulator(), sines).data(), bytes);
  engine_.synchronize();
}

int Transformer::lowestTrainable(const Adapter* adapter) const {
  if (base_.trainable()) return -1;
  return adapter && adapter->group.trainable() ? adapter->lowestStage
                                               : static_cast<int>(architecture_.blocks.size()) * kStages;
}

void Transformer::forward(const ForwardBuffers& buffers, const RowSet& rows, const Adapter* adapter,
                          const CacheUse* cache) {
  packed_.prepareLinears(PackedWeights::kForward);
  embed(buffers, rows);
  const size_t last = buffers.blocks.size() - 1;
  for (size_t i = 0; i < last; ++i) forwardBlock(buffers, rows, i, adapter, cache, buffers.blocks[i + 1].input);
  if (rows.leftOut > 0) {
    forwardAttention(buffers, rows, last, adapter, cache);
    return finishReadRows(buffers, rows, adapter);
  }
  forwardBlock(buffers, rows, last, adapter, cache, buffers.output);
  norm(architecture_.finalNorm, rows.rows, buffers.output, buffers.hidden, buffers.finalMean,
       buffers.finalRstd);
}

void Transformer::forwardBlock(const ForwardBuffers& buffers, const RowSet& rows, size_t index, const Adapter* adapter,
                               const CacheUse* cache, void* output) {
  forwardAttention(buffers, rows, index, adapter, cache);
  finishBlock(buffers, rows, index, adapter, output);
}

void Transformer::forwardAttention(const ForwardBuffers& buffers, const RowSet& rows, size_t index, const Adapter* adapter,
                                   const CacheUse* cache) {
  const BlockBuffers& block = buffers.blocks[index];
  const Block& layers = architecture_.blocks[index];
  norm(layers.attentionNorm, rows.rows, block.input, block.attentionNormed, block.attentionMean, block.attentionRstd);
  project(buffers, rows, index, kQkv, adapter, {.x = block.attentionNormed, .y = block.qkv});
  headNorms(block, layers, rows.rows);
  rotate(buffers, rows.rows, block.qkv, false);
  attend(buffers, rows, index, cache);
}

void Transformer::finishBlock(const ForwardBuffers& buffers, const RowSet& rows, size_t index, const Adapter* adapter,
                              void* output) {
  const BlockBuffers& block = buffers.blocks[index];
  // Blocks that are not saved update the stream in place, so what reads it comes first.
  if (architecture_.config.parallelResidual) normMlpInput(block, architecture_.blocks[index], rows.rows);
  project(buffers, rows, index, kAttentionOut, adapter,
          {.x = block.attention, .residual = block.input, .y = block.middle});
  mlp(buffers, rows, index, adapter, output);
}

void Transformer::embed(const ForwardBuffers& buffers, const RowSet& rows) {
  const ModelConfig& config = architecture_.config;
  EmbeddingForward arguments{.type = engine_.type(),
                             .tableType = base_.storage(),
                             .rows = rows.rows,
                             .cols = config.hidden,
                             .vocab = config.vocab,
                             .maxPositions = config.maxPositions};
  arguments.tokens = buffers.tokens;
  arguments.positions = buffers.positions;
  arguments.packedTable = packed_.packedEmbedding();
  if (!arguments.packedTable) arguments.table = base_.data(architecture_.embedding);
  arguments.positionTable = base_.data(architecture_.positionEmbedding);
  arguments.y = buffers.blocks.front().input;
  engine_.run(engine_.ops().embeddingForward, arguments);
}

void Transformer::norm(const NormLayer& layer, int64_t rows, const void* x, void* y, void* mean, void* rstd) {
  const ModelConfig& config = architecture_.config;
  if (architecture_.norm == NormKind::RmsNorm) {
    engine_.run(engine_.ops().rmsNormForward, RmsNormForward{.type = engine_.type(),
                                                             .rows = rows,
                                                             .cols = config.hidden,
                                                             .eps = config.normEps,
                                                             .x = x,
                                                             .weight = base_.data(layer.weight),
                                                             .y = y,
                                                             .rstd = rstd});
  } else {
    engine_.run(engine_.ops().layerNormForward, LayerNormForward{.type = engine_.type(),
                                                                 .rows = rows,
                                                                 .cols = config.hidden,
                                                                 .eps = config.normEps,
                                                                 .x = x,
                                                                 .weight = base_.data(layer.weight),
                                                                 .bias = base_.data(layer.bias),
                                                                 .y = y,
                                                                 .mean = mean,
                                                                 .rstd = rstd});
  }
}

void Transformer::headNorms(const BlockBuffers& buffers, const Block& block, int64_t rows) {
  if (!architecture_.config.headNorm) return;
  const ModelConfig& config = architecture_.config;
  HeadNormForward arguments{.type = engine_.type(),
                            .rows = rows,
                            .heads = config.heads,
                            .headDim = config.headDim,
                            .stride = architecture_.qkvWidth(),
                            .eps = config.normEps};
  arguments.weight = base_.data(block.queryNorm.weight);
  arguments.x = buffers.qkv;
  arguments.normalised = buffers.queryNormalised;
  arguments.rstd = buffers.queryRstd;
  engine_.run(engine_.ops().headNormForward, arguments);
  arguments.heads = config.kvHeads;
  arguments.weight = base_.data(block.keyNorm.weight);
  arguments.x = at(buffers.qkv, architecture_.queryWidth());
  arguments.normalised = buffers.keyNormalised;
  arguments.rstd = buffers.keyRstd;
  engine_.run(engine_.ops().headNormForward, arguments);
}

void Transformer::rotate(const ForwardBuffers& buffers, int64_t rows, void* qkv, bool inverse) {
  if (architecture_.rotary() == 0) return;
  const ModelConfig& config = architecture_.config;
  Rotary arguments{.type = engine_.type(),
                   .rows = rows,
                   .heads = config.heads,
                   .headDim = config.headDim,
                   .rotary = architecture_.rotary(),
                   .rowStride = architecture_.qkvWidth(),
                   .maxPositions = config.maxPositions,
                   .inverse = inverse};
  arguments.positions = buffers.positions;
  arguments.cosine = cosine_;
  arguments.sine = sine_;
  arguments.x = qkv;
  engine_.run(engine_.ops().rotary, arguments);
  arguments.heads = config.kvHeads;
  arguments.x = at(qkv, architecture_.queryWidth());
  engine_.run(engine_.ops().rotary, arguments);
}

void Transformer::attend(const ForwardBuffers& buffers, const RowSet& rows, size_t index,
                         const CacheUse* cache) {
  const ModelConfig& config = architecture_.config;
  const BlockBuffers& block = buffers.blocks[index];
  const int64_t stride = architecture_.qkvWidth(), window = architecture_.blocks[index].window;
  const char* k = at(block.qkv, architecture_.queryWidth());
  const char* v = at(block.qkv, architecture_.queryWidth() + architecture_.keyWidth());
  const double scale = 1 / std::sqrt(static_cast<double>(config.headDim));
  if (cache) {
    KvAppend append{.type = engine_.type(),
                    .cacheType = cache->cache.type,
                    .rows = rows.rows,
                    .kvHeads = config.kvHeads,
                    .headDim = config.headDim,
                    .pages = cache->cache.pages,
                    .kStride = stride,
                    .vStride = stride};
    append.places = cache->places;
    append.k = k;
    append.v = v;
    append.kCache = cache->cache.keys[index];
    append.vCache = cache->cache.values[index];
    engine_.run(engine_.ops().kvAppend, append);
  }
  if (cache && cache->tables) {
    DecodeAttention decode{.type = engine_.type(),
                           .cacheType = cache->cache.type,
                           .rows = rows.rows,
                           .heads = config.heads,
                           .kvHeads = config.kvHeads,
                           .headDim = config.headDim,
                           .pages = cache->cache.pages,
                           .tableStride = cache->tableStride,
                           .qStride = stride,
                           .oStride = architecture_.queryWidth(),
                           .window = window,
                           .scale = scale};
    decode.tables = cache->tables;
    decode.lengths = cache->lengths;
    decode.q = block.qkv;
    decode.kCache = cache->cache.keys[index];
    decode.vCache = cache->cache.values[index];
    decode.o = block.attention;
    engine_.run(engine_.ops().decodeAttention, decode);
    return;
  }
  AttentionForward attention{.type = engine_.type(),
                             .compute = engine_.compute(),
                             .rows = rows.rows,
                             .sequences = rows.sequences,
                             .maxLength = rows.maxLength,
                             .heads = config.heads,
                             .kvHeads = config.kvHeads,
                             .headDim = config.headDim,
                             .qStride = stride,
                             .kStride = stride,
                             .vStride = stride,
                             .oStride = architecture_.queryWidth(),
                             .window = window,
                             .scale = scale};
  attention.offsets = buffers.offsets;
  attention.parents = buffers.parents;
  attention.q = block.qkv;
  attention.k = k;
  attention.v = v;
  attention.o = block.attention;
  attention.lse = block.attentionLse;
  engine_.run(engine_.ops().attentionForward, attention);
}

void Transformer::normMlpInput(const BlockBuffers& buffers, const Block& block, int64_t rows) {
  const void* stream = architecture_.config.parallelResidual ? buffers.input : buffers.middle;
  norm(block.mlpNorm, rows, stream, buffers.mlpNormed, buffers.mlpMean, buffers.mlpRstd);
}

void Transformer::mlp(const ForwardBuffers& buffers, const RowSet& rows, size_t index, const Adapter* adapter,
                      void* output) {
  const BlockBuffers& block = buffers.blocks[index];
  if (!architecture_.config.parallelResidual) normMlpInput(block, architecture_.blocks[index], rows.rows);
  if (architecture_.gatedMlp) {
    project(buffers, rows, index, kMlpIn, adapter, {.x = block.mlpNormed, .y = block.mlpIn});
    activateGated(block, rows.rows, block.mlpActivated);
  } else {
    project(buffers, rows, index, kMlpIn, adapter,
            {.activation = architecture_.config.activation,
             .x = block.mlpNormed,
             .preActivation = block.mlpIn,
             .y = block.mlpActivated});
  }
  if (output)
    project(buffers, rows, index, kMlpOut, adapter,
            {.x = block.mlpActivated, .residual = block.middle, .y = output});
}

void Transformer::activateGated(const BlockBuffers& block, int64_t rows, void* activated) {
  const int64_t inner = architecture_.config.intermediate;
  engine_.run(engine_.ops().gatedSiluForward, GatedSiluForward{.type = engine_.type(),
                                                               .rows = rows,
                                                               .cols = inner,
                                                               .inputStride = 2 * inner,
                                                               .gate = block.mlpIn,
                                                               .up = at(block.mlpIn, inner),
                                                               .y = activated});
}

void Transformer::project(const ForwardBuffers& buffers, const RowSet& rows, size_t block, Stage stage,
                          const Adapter* adapter, LinearForward shared) {
  for (const LinearLayer& layer : architecture_.blocks[block].stages[stage]) {
    LinearForward arguments = shared;
    arguments.type = engine_.type();
    arguments.rows = rows.rows;
    arguments.decoding = rows.decoding;
    arguments.inputs = layer.inputs;
    arguments.outputs = layer.outputs;
    arguments.xStride = layer.inputs;
    arguments.yStride = architecture_.outputWidth(stage);
    arguments.weight = packed_.linear(layer);
    arguments.bias = base_.data(layer.bias);
    arguments.y = at(shared.y, layer.column);
    if (adapter && adapter->adapts(layer)) {
      arguments.lora = adapter->factors(layer);
      arguments.loraHidden = buffers.loraHidden[static_cast<size_t>(layer.index)];
      if (buffers.rowKeys) {
        dropOut(buffers, rows, *adapter, layer, shared.x, buffers.loraInput, false);
        arguments.loraInput = buffers.loraInput;
      }
    }
    engine_.run(engine_.ops().linearForward, arguments);
  }
}

void Transformer::dropOut(const ForwardBuffers& buffers, const RowSet& rows, const Adapter& adapter,
                          const LinearLayer& layer, const void* x, void* y, bool accumulate) {
  Dropout arguments{.type = engine_.type(),
                    .rows = rows.rows,
                    .cols = layer.inputs,
                    .xStride = layer.inputs,
                    .yStride = layer.inputs,
                    .probability = adapter.config.dropout,
                    .seed = rows.dropoutSeed,
                    .layer = layer.index,
                    .accumulate = accumulate};
  arguments.keys = buffers.rowKeys;
  arguments.x = x;
  arguments.y = y;
  engine_.run(engine_.ops().dropout, arguments);
}

void Transformer::tokenStatistics(const ForwardBuffers& buffers, const RowSet& rows, int64_t count,
                                  double temperature, void* logProb, void* lse, void* entropy) {
  for (void* output : {logProb, lse, entropy})
    engine_.zero(output, static_cast<size_t>(rows.rows) * dtypeSize(engine_.accumulator()));
  if (count == 0) return;
  packed_.prepareHead(PackedWeights::kForward);
  TokenLogProbForward arguments{.type = engine_.type(),
                                .rows = rows.rows,
                                .cols = architecture_.config.hidden,
                                .vocab = architecture_.config.vocab,
                                .count = count,
                                .temperature = temperature};
  arguments.x = buffers.hidden;
  arguments.tokens = buffers.tokens;
  arguments.predictions = buffers.predictions;
  arguments.sources = buffers.sources;
  arguments.head = packed_.head();
  arguments.logProb = logProb;
  arguments.lse = lse;
  arguments.entropy = entropy;
  arguments.logits = buffers.logits;
  engine_.run(engine_.ops().tokenLogProbForward, arguments);
}

LinearWeight Transformer::preparedHead() {
  packed_.prepareHead(PackedWeights::kForward);
  return packed_.head();
}

void Transformer::logits(int64_t rows, const void* hidden, void* out) {
  packed_.prepareHead(PackedWeights::kForward);
  const ModelConfig& config = architecture_.config;
  LinearForward arguments{.type = engine_.type(),
                          .rows = rows,
                          .inputs = config.hidden,
                          .outputs = config.vocab,
                          .xStride = config.hidden,
                          .yStride = config.vocab,
                          .decoding = 1,
                          .wideOutput = 1};
  arguments.x = hidden;
  arguments.weight = packed_.head();
  arguments.y = out;
  engine_.run(engine_.ops().linearForward, arguments);
}

}  // namespace rlhf
