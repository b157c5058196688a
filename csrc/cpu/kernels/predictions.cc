#include "cpu/kernels/predictions.h"

#include "cpu/kernels/weight_view.h"

namespace rlhf::RLHF_ISA {

PredictionBlock::PredictionBlock(const void* x, int64_t width, const LinearWeight& weight, int64_t vocabulary,
                                 const int32_t* rows, int64_t predictions, SharedScratch& scratch)
    : count(predictions), cols(width), vocab(vocabulary), sources(rows), head(weight) {
  float* const gathered = scratch.take(count * cols);
  for (int64_t p = 0; p < count; ++p) std::copy_n(floats(x) + sources[p] * cols, cols, gathered + p * cols);
  hidden = gathered;
}

Product PredictionBlock::logits(int64_t vocabBegin, int64_t vocabCount) const {
  Product product{count, vocabCount, head.compute, {}};
  product.terms[0] = {.depth = cols, .a = {hidden, cols, 1}, .b = {}};
  if (head.packedForward) {
    const int64_t stride = panelStrideOf(cols, head.compute);
    product.terms[0].packedB = floats(head.packedForward) + panelOffset(0, vocabBegin, stride, head.compute);
    product.terms[0].packedBStride = stride;
  } else {
    product.terms[0].b = MatrixView{head.data, 1, cols, head.type}.from(0, vocabBegin);
  }
  return product;
}

namespace {

void addTo(float* sums, const float* values, int64_t count) {
  forEachVector(count, [&](int64_t i, auto lanes) { lanes.store(sums + i, lanes.load(sums + i) + lanes.load(values + i)); });
}

/// The products to come are linear: of rows with the same source the first takes the sum, and the others become 0. Each hidden
/// row is then written by one row of the product.
void sumRowsOfOneSource(const PredictionBlock& block, const LogitGradients& dz) {
  float* sum = nullptr;
  for (int64_t row = 0; row < block.count; ++row) {
    float* const values = dz.data + row * dz.stride;
    if (block.leads(row)) {
      sum = values;
      continue;
    }
    addTo(sum, values, dz.vocabCount);
    std::fill_n(values, dz.vocabCount, 0.0f);
  }
}

void addToHidden(OpContext& context, SharedScratch scratch, const PredictionBlock& block, const LogitGradients& dz, float* dx) {
  const DType compute = block.head.compute;
  Product product{block.count, block.cols, compute, {}};
  product.terms[0] = {.depth = dz.vocabCount, .a = {dz.data, dz.stride, 1}, .b = {}};
  if (block.head.packedBackward) {
    const int64_t stride = panelStrideOf(block.vocab, compute);
    product.terms[0].packedB = floats(block.head.packedBackward) + panelOffset(dz.vocabBegin, 0, stride, compute);
    product.terms[0].packedBStride = stride;
  } else {
    product.terms[0].b = backwardOperand("gradients of logits", block.head, block.vocab, block.cols).from(dz.vocabBegin, 0);
  }
  auto consume = [&](const Strip& strip) {
    for (int64_t i = 0; i < strip.rows; ++i)
      if (block.leads(strip.row + i))
        addTo(dx + block.sources[strip.row + i] * block.cols + strip.col, strip.values + i * strip.stride, strip.cols);
  };
  gemm(context, scratch, product, consume);
}

void addToWeight(OpContext& context, SharedScratch scratch, const PredictionBlock& block, const LogitGradients& dz,
                 float* dWeight) {
  Product product{dz.vocabCount, block.cols, block.head.compute, {}};
  product.terms[0] = {.depth = block.count, .a = {dz.data, 1, dz.stride}, .b = {block.hidden, block.cols, 1}};
  product.destination = dWeight + dz.vocabBegin * block.cols;
  product.destinationStride = block.cols;
  auto consume = [&](const Strip& strip) {
    for (int64_t i = 0; i < strip.rows; ++i)
      addTo(dWeight + (dz.vocabBegin + strip.row + i) * block.cols + strip.col, strip.values + i * strip.stride, strip.cols);
  };
  gemm(context, scratch, product, consume);
}

}  // namespace

void addLogitGradients(OpContext& context, SharedScratch scratch, const PredictionBlock& block, const LogitGradients& dz,
                       void* dx, void* dWeight) {
  sumRowsOfOneSource(block, dz);
  addToHidden(context, scratch, block, dz, floats(dx));
  if (dWeight) addToWeight(context, scratch, block, dz, floats(dWeight));
}

}  // namespace rlhf::RLHF_ISA
