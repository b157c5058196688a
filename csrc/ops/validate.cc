#include "ops/argument_check.h"
#include "ops/ops.h"

// Only what the arguments themselves tell is checked here: arrays may lie in device memory, so their contents
// (tokens, offsets, positions) are checked, where that is promised, by the kernels.

namespace rlhf {

void validate(const EmbeddingForward& a) {
  const ArgumentCheck check("embeddingForward");
  check.floating("type", a.type);
  check.floating("tableType", a.tableType);
  check.positive({{"rows", a.rows}, {"cols", a.cols}, {"vocab", a.vocab}});
  check.present({{"tokens", a.tokens}, {"y", a.y}});
  check.presentWhen(!a.packedTable, "table", a.table, "without packedTable");
  if (a.positionTable) check.atLeast("maxPositions", a.maxPositions, 1);
  check.presentWhen(a.positionTable != nullptr, "positions", a.positions, "with positionTable");
}

void validate(const EmbeddingBackward& a) {
  const ArgumentCheck check("embeddingBackward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}, {"vocab", a.vocab}});
  check.present({{"tokens", a.tokens}, {"dy", a.dy}, {"dTable", a.dTable}});
  if (a.dPositionTable) check.atLeast("maxPositions", a.maxPositions, 1);
  check.presentWhen(a.dPositionTable != nullptr, "positions", a.positions, "with dPositionTable");
}

void validate(const RmsNormForward& a) {
  const ArgumentCheck check("rmsNormForward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.number("eps", a.eps, a.eps >= 0, "≥ 0");
  check.present({{"x", a.x}, {"weight", a.weight}, {"y", a.y}, {"rstd", a.rstd}});
}

void validate(const RmsNormBackward& a) {
  const ArgumentCheck check("rmsNormBackward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.flag("accumulateDx", a.accumulateDx);
  check.present({{"x", a.x}, {"weight", a.weight}, {"rstd", a.rstd}, {"dy", a.dy}, {"dx", a.dx}});
}

void validate(const LayerNormForward& a) {
  const ArgumentCheck check("layerNormForward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.number("eps", a.eps, a.eps >= 0, "≥ 0");
  check.present({{"x", a.x}, {"weight", a.weight}, {"bias", a.bias}, {"y", a.y}, {"mean", a.mean}, {"rstd", a.rstd}});
}

void validate(const LayerNormBackward& a) {
  const ArgumentCheck check("layerNormBackward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.flag("accumulateDx", a.accumulateDx);
  check.present({{"x", a.x}, {"weight", a.weight}, {"mean", a.mean}, {"rstd", a.rstd}, {"dy", a.dy}, {"dx", a.dx}});
}

namespace {

template <class Arguments>
void checkHeadNorm(const ArgumentCheck& check, const Arguments& a) {
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"heads", a.heads}, {"headDim", a.headDim}});
  check.stride("stride", a.stride, "heads · headDim", a.heads * a.headDim);
  check.present("weight", a.weight);
}

}  // namespace

void validate(const HeadNormForward& a) {
  const ArgumentCheck check("headNormForward");
  checkHeadNorm(check, a);
  check.number("eps", a.eps, a.eps >= 0, "≥ 0");
  check.present("x", a.x);
}

void validate(const HeadNormBackward& a) {
  const ArgumentCheck check("headNormBackward");
  checkHeadNorm(check, a);
  check.present({{"normalised", a.normalised}, {"rstd", a.rstd}, {"dx", a.dx}});
}

void validate(const Rotary& a) {
  const ArgumentCheck check("rotary");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"heads", a.heads}, {"headDim", a.headDim}});
  check.between("rotary", a.rotary, 2, a.headDim);
  check.multiple("rotary", a.rotary, "a pair", 2);
  check.stride("rowStride", a.rowStride, "heads · headDim", a.heads * a.headDim);
  check.atLeast("maxPositions", a.maxPositions, 1);
  check.flag("inverse", a.inverse);
  check.present({{"positions", a.positions}, {"cosine", a.cosine}, {"sine", a.sine}, {"x", a.x}});
}

void validate(const PackWeight& a) {
  const ArgumentCheck check("packWeight");
  check.floating("type", a.type);
  check.product("compute", a.compute);
  check.positive({{"inputs", a.inputs}, {"outputs", a.outputs}});
  check.flag("transposed", a.transposed);
  check.flag("backward", a.backward);
  check.present({{"weight", a.weight}, {"packed", a.packed}});
}

void validate(const UnpackWeight& a) {
  const ArgumentCheck check("unpackWeight");
  check.floating("type", a.type);
  check.positive({{"inputs", a.inputs}, {"outputs", a.outputs}});
  check.flag("transposed", a.transposed);
  check.present({{"packed", a.packed}, {"weight", a.weight}});
}

void validate(const LinearForward& a) {
  const ArgumentCheck check("linearForward");
  check.floating("type", a.type);
  check.floating("weightType", a.weight.type);
  check.product("compute", a.weight.compute);
  check.positive({{"rows", a.rows}, {"inputs", a.inputs}, {"outputs", a.outputs}});
  check.stride("xStride", a.xStride, "inputs", a.inputs);
  check.stride("yStride", a.yStride, "outputs", a.outputs);
  check.choice("activation", static_cast<int32_t>(a.activation), 0, static_cast<int32_t>(Activation::Silu));
  check.flag("transposed", a.weight.transposed);
  check.flag("decoding", a.decoding);
  check.flag("wideOutput", a.wideOutput);
  check.absentWhen(a.wideOutput, "residual", a.residual, "with wideOutput");
  check.absentWhen(a.wideOutput, "preActivation", a.preActivation, "with wideOutput");
  check.present("x", a.x);
  check.presentWhen(!a.weight.packedForward, "weight", a.weight.data, "without packedForward");
  check.present("y", a.y);
  check.atLeast("rank", a.lora.rank, 0);
  const bool adapted = a.lora.rank > 0;
  check.finite("scale", a.lora.scale);
  check.presentWhen(adapted, "loraA", a.lora.a, "with rank > 0");
  check.presentWhen(adapted, "loraB", a.lora.b, "with rank > 0");
  check.presentWhen(adapted, "loraHidden", a.loraHidden, "with rank > 0");
  check.absentWhen(!adapted, "loraInput", a.loraInput, "with rank 0");
}

void validate(const LinearBackward& a) {
  const ArgumentCheck check("linearBackward");
  check.floating("type", a.type);
  check.floating("weightType", a.weight.type);
  check.product("compute", a.weight.compute);
  check.positive({{"rows", a.rows}, {"inputs", a.inputs}, {"outputs", a.outputs}});
  check.stride("dyStride", a.dyStride, "outputs", a.outputs);
  check.flag("accumulateDx", a.accumulateDx);
  check.flag("transposed", a.weight.transposed);
  check.present("dy", a.dy);
  if (a.dx) check.stride("dxStride", a.dxStride, "inputs", a.inputs);
  const bool readsWeight = a.dx && !a.weight.packedBackward && !a.weight.packedForward;
  check.presentWhen(readsWeight, "weight", a.weight.data, "with dx and without a packed form");
  const bool readsX = a.dWeight || (a.dA && !a.loraInput);
  check.presentWhen(readsX, "x", a.x, "with dWeight, or with dA and no loraInput");
  if (readsX) check.stride("xStride", a.xStride, "inputs", a.inputs);

  check.atLeast("rank", a.lora.rank, 0);
  check.finite("scale", a.lora.scale);
  const bool adapted = a.lora.rank > 0;
  check.absentWhen(!adapted, "dA", a.dA, "with rank 0");
  check.absentWhen(!adapted, "dB", a.dB, "with rank 0");
  check.absentWhen(!adapted, "loraInput", a.loraInput, "with rank 0");
  check.absentWhen(!adapted, "dLoraInput", a.dLoraInput, "with rank 0");
  const bool needsA = adapted && (a.dx || a.dLoraInput), needsGradient = needsA || a.dA;
  check.presentWhen(needsA, "loraA", a.lora.a, "with rank > 0 and dx or dLoraInput");
  check.presentWhen(needsGradient, "loraB", a.lora.b, "with rank > 0 and dx, dLoraInput or dA");
  check.presentWhen(needsGradient, "loraGradient", a.loraGradient, "with rank > 0 and dx, dLoraInput or dA");
  check.presentWhen(adapted && a.dB, "loraHidden", a.loraHidden, "with rank > 0 and dB");
}

void validate(const Dropout& a) {
  const ArgumentCheck check("dropout");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.stride("xStride", a.xStride, "cols", a.cols);
  check.stride("yStride", a.yStride, "cols", a.cols);
  check.number("probability", a.probability, a.probability >= 0 && a.probability < 1, "0 to below 1");
  check.between("layer", a.layer, 0, INT32_MAX);
  check.flag("accumulate", a.accumulate);
  check.present({{"keys", a.keys}, {"x", a.x}, {"y", a.y}});
}

void validate(const ActivationForward& a) {
  const ArgumentCheck check("activationForward");
  check.floating("type", a.type);
  check.choice("activation", static_cast<int32_t>(a.activation), 0, static_cast<int32_t>(Activation::Silu));
  check.atLeast("count", a.count, 0);
  check.present({{"x", a.x}, {"y", a.y}});
}

void validate(const ActivationBackward& a) {
  const ArgumentCheck check("activationBackward");
  check.floating("type", a.type);
  check.choice("activation", static_cast<int32_t>(a.activation), 0, static_cast<int32_t>(Activation::Silu));
  check.atLeast("count", a.count, 0);
  check.present({{"x", a.x}, {"dy", a.dy}, {"dx", a.dx}});
}

void validate(const GatedSiluForward& a) {
  const ArgumentCheck check("gatedSiluForward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.stride("inputStride", a.inputStride, "cols", a.cols);
  check.present({{"gate", a.gate}, {"up", a.up}, {"y", a.y}});
}

void validate(const GatedSiluBackward& a) {
  const ArgumentCheck check("gatedSiluBackward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"cols", a.cols}});
  check.stride("inputStride", a.inputStride, "cols", a.cols);
  check.present({{"gate", a.gate}, {"up", a.up}, {"dy", a.dy}, {"dGate", a.dGate}, {"dUp", a.dUp}});
}

namespace {

/// The sizes that attention forward and backward share.
template <class Arguments>
void checkAttentionSizes(const ArgumentCheck& check, const Arguments& a) {
  check.floating("type", a.type);
  check.product("compute", a.compute);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  check.between("maxLength", a.maxLength, 1, a.rows);
  check.positive({{"heads", a.heads}, {"kvHeads", a.kvHeads}});
  check.multiple("heads", a.heads, "kvHeads", a.kvHeads);
  check.atLeast("headDim", a.headDim, 1);
  check.stride("qStride", a.qStride, "heads · headDim", a.heads * a.headDim);
  check.stride("kStride", a.kStride, "kvHeads · headDim", a.kvHeads * a.headDim);
  check.stride("vStride", a.vStride, "kvHeads · headDim", a.kvHeads * a.headDim);
  check.stride("oStride", a.oStride, "heads · headDim", a.heads * a.headDim);
  check.atLeast("window", a.window, 0);
  check.number("scale", a.scale, a.scale > 0, "> 0");
  check.present({{"offsets", a.offsets}, {"q", a.q}, {"k", a.k}, {"v", a.v}, {"o", a.o}, {"lse", a.lse}});
}

}  // namespace

void validate(const AttentionForward& a) { checkAttentionSizes(ArgumentCheck("attentionForward"), a); }

void validate(const AttentionBackward& a) {
  const ArgumentCheck check("attentionBackward");
  checkAttentionSizes(check, a);
  check.present({{"dO", a.dO}, {"dq", a.dq}, {"dk", a.dk}, {"dv", a.dv}, {"delta", a.delta}});
}

namespace {

/// What ops over the vocabulary share.
template <class Arguments>
void checkPredictions(const ArgumentCheck& check, const Arguments& a) {
  check.floating("type", a.type);
  check.floating("weightType", a.head.type);
  check.product("compute", a.head.compute);
  check.positive({{"rows", a.rows}, {"cols", a.cols}, {"vocab", a.vocab}});
  check.between("count", a.count, 0, a.rows - 1);
  check.number("temperature", a.temperature, a.temperature > 0, "> 0");
  check.present("x", a.x);
  check.presentWhen(a.count > 0, "predictions", a.predictions, "with count > 0");
  check.presentWhen(a.count > 0, "sources", a.sources, "with count > 0");
  check.present("lse", a.lse);
}

template <class Arguments>
void checkTokenLogProbInputs(const ArgumentCheck& check, const Arguments& a) {
  checkPredictions(check, a);
  check.present({{"tokens", a.tokens}, {"entropy", a.entropy}});
}

template <class Arguments>
void checkKlDivergenceInputs(const ArgumentCheck& check, const Arguments& a) {
  checkPredictions(check, a);
  check.floating("refWeightType", a.refHead.type);
  check.product("refCompute", a.refHead.compute);
  check.atLeast("refCols", a.refCols, 1);
  check.choice("direction", static_cast<int32_t>(a.direction), 0, 1);
  check.present({{"refX", a.refX}, {"refLse", a.refLse}, {"kl", a.kl}});
  check.presentWhen(!a.refHead.packedForward, "refWeight", a.refHead.data, "without refPackedForward");
}

}  // namespace

void validate(const TokenLogProbForward& a) {
  const ArgumentCheck check("tokenLogProbForward");
  checkTokenLogProbInputs(check, a);
  check.presentWhen(!a.head.packedForward, "weight", a.head.data, "without packedForward");
  check.present("logProb", a.logProb);
}

void validate(const TokenLogProbBackward& a) {
  const ArgumentCheck check("tokenLogProbBackward");
  checkTokenLogProbInputs(check, a);
  check.number("lossScale", a.lossScale, a.lossScale > 0, "> 0");
  const bool packed = a.head.packedForward || (a.head.packedBackward && a.logits);
  check.presentWhen(!packed, "weight", a.head.data, "without the packed forms");
  check.present("dx", a.dx);
}

void validate(const TokenLossForwardBackward& a) {
  const ArgumentCheck check("tokenLossForwardBackward");
  checkTokenLogProbInputs(check, a);
  check.number("lossScale", a.lossScale, a.lossScale > 0, "> 0");
  check.atLeast("blockRows", a.blockRows, 1);
  check.choice("kind", static_cast<int32_t>(a.loss.kind), 0, 2);
  check.presentWhen(!a.head.packedForward, "weight", a.head.data, "without packedForward");
  check.present("logProb", a.logProb);
  check.absentWhen(!a.dx, "dWeight", a.dWeight, "without dx");
  switch (a.loss.kind) {
    case TokenLossKind::Nll: return validate(a.nllLoss());
    case TokenLossKind::PpoPolicy: return validate(a.ppoLoss());
    case TokenLossKind::GroupPolicy: return validate(a.groupLoss());
  }
}

void validate(const KlDivergenceForward& a) {
  const ArgumentCheck check("klDivergenceForward");
  checkKlDivergenceInputs(check, a);
  check.presentWhen(!a.head.packedForward && !a.logits, "weight", a.head.data, "without packedForward or logits");
}

void validate(const KlDivergenceBackward& a) {
  const ArgumentCheck check("klDivergenceBackward");
  checkKlDivergenceInputs(check, a);
  check.number("lossScale", a.lossScale, a.lossScale > 0, "> 0");
  const bool packed = a.head.packedForward || (a.head.packedBackward && a.logits);
  check.presentWhen(!packed, "weight", a.head.data, "without the packed forms");
  check.present({{"dKl", a.dKl}, {"dx", a.dx}});
}

void validate(const AdamW& a) {
  const ArgumentCheck check("adamW");
  check.floating("type", a.type);
  check.atLeast("count", a.count, 0);
  check.atLeast("step", a.step, 1);
  check.number("learningRate", a.learningRate, a.learningRate >= 0, "≥ 0");
  check.number("beta1", a.beta1, a.beta1 >= 0 && a.beta1 < 1, "0 to below 1");
  check.number("beta2", a.beta2, a.beta2 >= 0 && a.beta2 < 1, "0 to below 1");
  check.number("eps", a.eps, a.eps >= 0, "≥ 0");
  check.number("weightDecay", a.weightDecay, a.weightDecay >= 0, "≥ 0");
  check.finite("gradientScale", a.gradientScale);
  check.present({{"gradient", a.gradient}, {"parameter", a.parameter}, {"m", a.m}, {"v", a.v}});
  check.presentWhen(a.type == DType::F16, "master", a.master, "with float16, which is not rounded stochastically");
}

void validate(const Narrow& a) {
  const ArgumentCheck check("narrow");
  check.floating("type", a.type);
  check.finite("scale", a.scale);
  check.atLeast("count", a.count, 0);
  check.presentWhen(a.count > 0, "x", a.x, "with count > 0");
  check.presentWhen(a.count > 0, "y", a.y, "with count > 0");
}

void validate(const SquaredNorm& a) {
  const ArgumentCheck check("squaredNorm");
  check.real("type", a.type);
  check.atLeast("count", a.count, 0);
  check.presentWhen(a.count > 0, "x", a.x, "with count > 0");
  check.present("out", a.out);
}

void validate(const KvAppend& a) {
  const ArgumentCheck check("kvAppend");
  check.floating("type", a.type);
  check.sameOrBfloat16("cacheType", a.cacheType, a.type);
  check.positive({{"rows", a.rows}, {"kvHeads", a.kvHeads}, {"headDim", a.headDim}, {"pages", a.pages}});
  check.stride("kStride", a.kStride, "kvHeads · headDim", a.kvHeads * a.headDim);
  check.stride("vStride", a.vStride, "kvHeads · headDim", a.kvHeads * a.headDim);
  check.present({{"places", a.places}, {"k", a.k}, {"v", a.v}, {"kCache", a.kCache}, {"vCache", a.vCache}});
}

void validate(const DecodeAttention& a) {
  const ArgumentCheck check("decodeAttention");
  check.floating("type", a.type);
  check.sameOrBfloat16("cacheType", a.cacheType, a.type);
  check.positive({{"rows", a.rows}, {"heads", a.heads}, {"kvHeads", a.kvHeads}});
  check.multiple("heads", a.heads, "kvHeads", a.kvHeads);
  check.positive({{"headDim", a.headDim}, {"pages", a.pages}, {"tableStride", a.tableStride}});
  check.stride("qStride", a.qStride, "heads · headDim", a.heads * a.headDim);
  check.stride("oStride", a.oStride, "heads · headDim", a.heads * a.headDim);
  check.atLeast("window", a.window, 0);
  check.finite("scale", a.scale);
  check.present({{"tables", a.tables}, {"lengths", a.lengths}, {"q", a.q}, {"kCache", a.kCache}, {"vCache", a.vCache},
                 {"o", a.o}});
}

void validate(const Sample& a) {
  const ArgumentCheck check("sample");
  check.real("type", a.type);
  check.positive({{"rows", a.rows}, {"vocab", a.vocab}});
  check.atLeast("forbiddenCount", a.forbiddenCount, 0);
  check.number("temperature", a.temperature, a.temperature >= 0, "≥ 0");
  check.number("topP", a.topP, a.topP > 0 && a.topP <= 1, "above 0 to 1");
  check.number("minP", a.minP, a.minP >= 0 && a.minP <= 1, "0 to 1");
  check.number("repetitionPenalty", a.repetitionPenalty, a.repetitionPenalty > 0, "> 0");
  check.atLeast("topK", a.topK, 0);
  check.present({{"streams", a.streams}, {"positions", a.positions}});
  check.presentWhen(a.repetitionPenalty != 1, "seen", a.seen, "with repetitionPenalty ≠ 1");
  check.presentWhen(a.forbiddenCount > 0, "forbidden", a.forbidden, "with forbiddenCount > 0");
  check.present({{"logits", a.logits}, {"token", a.token}, {"logProb", a.logProb}});
}

}  // namespace rlhf
