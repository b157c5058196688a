#include "model/mlp.h"

#include <algorithm>

namespace rlhf {
namespace {

constexpr int64_t kLargestWidth = 1 << 20;

int64_t widestOf(const MlpShape& shape) { return *std::max_element(shape.sizes.begin(), shape.sizes.end()); }

/// Where one layer's arrays begin, in elements.
struct Layer {
  int64_t inputs, outputs, weight, bias;
  int64_t preActivation, activated;  // in `kept`; hidden layers only
};

std::vector<Layer> layersOf(const MlpShape& shape, int64_t rows) {
  std::vector<Layer> layers;
  int64_t parameter = 0, kept = 0;
  for (size_t i = 0; i + 1 < shape.sizes.size(); ++i) {
    const int64_t inputs = shape.sizes[i], outputs = shape.sizes[i + 1];
    layers.push_back({inputs, outputs, parameter, parameter + inputs * outputs, kept, kept + rows * outputs});
    parameter += (inputs + 1) * outputs;
    kept += 2 * rows * outputs;
  }
  return layers;
}

const char* at(const Engine& engine, const void* array, int64_t element) {
  return static_cast<const char*>(array) + static_cast<size_t>(element) * dtypeSize(engine.accumulator());
}
char* at(const Engine& engine, void* array, int64_t element) {
  return static_cast<char*>(array) + static_cast<size_t>(element) * dtypeSize(engine.accumulator());
}

}  // namespace

void MlpShape::validate() const {
  if (sizes.size() < 2) throw Error(code::kArgument, "an MLP needs at least two sizes: its inputs and its outputs");
  for (const int64_t size : sizes)
    if (size < 1 || size > kLargestWidth)
      throw Error(code::kArgument, format("an MLP's sizes must be from 1 to %lld, got %lld",
                                          static_cast<long long>(kLargestWidth), static_cast<long long>(size)));
}

int64_t MlpShape::parameterCount() const {
  int64_t count = 0;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) count += (sizes[i] + 1) * sizes[i + 1];
  return count;
}

int64_t MlpShape::keptPerRow() const {
  int64_t count = 0;
  for (size_t i = 1; i + 1 < sizes.size(); ++i) count += 2 * sizes[i];
  return count;
}

int64_t MlpShape::workPerRow() const { return 2 * widestOf(*this); }

void mlpForward(Engine& engine, const MlpShape& shape, int64_t rows, const void* x, const void* parameters, void* kept, void* y) {
  engine.reserveScratch({.rows = rows, .maxWidth = widestOf(shape)});
  const std::vector<Layer> layers = layersOf(shape, rows);
  const void* input = x;
  for (const Layer& layer : layers) {
    const bool last = &layer == &layers.back();
    LinearForward linear{.type = engine.accumulator(),
                         .rows = rows,
                         .inputs = layer.inputs,
                         .outputs = layer.outputs,
                         .xStride = layer.inputs,
                         .yStride = layer.outputs};
    linear.activation = last ? Activation::None : shape.activation;
    linear.x = input;
    linear.weight = {.type = engine.accumulator(), .data = at(engine, parameters, layer.weight)};
    linear.bias = at(engine, parameters, layer.bias);
    linear.preActivation = last ? nullptr : at(engine, kept, layer.preActivation);
    linear.y = last ? y : at(engine, kept, layer.activated);
    engine.run(engine.ops().linearForward, linear);
    input = linear.y;
  }
}

void mlpBackward(Engine& engine, const MlpShape& shape, int64_t rows, const void* x, const void* parameters, const void* kept,
                 const void* dy, void* work, void* gradient, void* dx) {
  engine.reserveScratch({.rows = rows, .maxWidth = widestOf(shape)});
  engine.zero(gradient, static_cast<size_t>(shape.parameterCount()) * dtypeSize(engine.accumulator()));
  const std::vector<Layer> layers = layersOf(shape, rows);
  void* const halves[] = {work, at(engine, work, rows * widestOf(shape))};
  const void* dOutput = dy;
  for (size_t i = layers.size(); i-- > 0;) {
    const Layer& layer = layers[i];
    LinearBackward linear{.type = engine.accumulator(),
                          .rows = rows,
                          .inputs = layer.inputs,
                          .outputs = layer.outputs,
                          .xStride = layer.inputs,
                          .dyStride = layer.outputs,
                          .dxStride = layer.inputs};
    linear.x = i == 0 ? x : at(engine, kept, layers[i - 1].activated);
    linear.dy = dOutput;
    linear.weight = {.type = engine.accumulator(), .data = at(engine, parameters, layer.weight)};
    linear.dx = i == 0 ? dx : halves[i % 2];
    linear.dWeight = at(engine, gradient, layer.weight);
    linear.dBias = at(engine, gradient, layer.bias);
    engine.run(engine.ops().linearBackward, linear);
    if (i == 0) return;
    ActivationBackward activation{.type = engine.accumulator(), .activation = shape.activation, .count = rows * layer.inputs};
    activation.x = at(engine, kept, layers[i - 1].preActivation);
    activation.dy = activation.dx = linear.dx;
    engine.run(engine.ops().activationBackward, activation);
    dOutput = linear.dx;
  }
}

}  // namespace rlhf
