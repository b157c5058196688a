#include "model/head.h"

#include <cmath>

#include "model/initialise.h"

namespace rlhf {

Head::Head(Engine& engine, int64_t hiddenWidth, const std::string& name, const HeadConfig& headConfig)
    : config(headConfig), group("head:" + name, true), hidden(hiddenWidth) {
  if (config.inner < 0 || config.inner > (1 << 24))
    throw Error(code::kArgument, format("a head's inner width must be 0 (linear) or positive, got %lld",
                                        static_cast<long long>(config.inner)));
  if (!(config.initStd >= 0) || !std::isfinite(config.initStd))
    throw Error(code::kArgument, format("a head's initStd must be at least 0, got %g", config.initStd));
  if (config.inner > 0) {
    innerWeight = group.add(name + ":inner.weight", {config.inner, hidden});
    if (config.bias) innerBias = group.add(name + ":inner.bias", {config.inner});
  }
  weight = group.add(name + ":weight", {1, config.inner > 0 ? config.inner : hidden});
  if (config.bias) bias = group.add(name + ":bias", {1});
  group.allocate(engine);
  if (innerWeight >= 0)
    initialiseNormal(group, innerWeight, 1 / std::sqrt(static_cast<double>(hidden)), config.seed);
  if (config.initStd > 0) initialiseNormal(group, weight, config.initStd, config.seed);
}

void Head::forward(int64_t rows, const void* hiddenStates, const HeadBuffers& buffers, void* value) const {
  Engine& engine = group.engine();
  const void* x = hiddenStates;
  int64_t width = hidden;
  if (config.inner > 0) {
    LinearForward inner{.type = engine.type(),
                        .rows = rows,
                        .inputs = hidden,
                        .outputs = config.inner,
                        .xStride = hidden,
                        .yStride = config.inner};
    inner.activation = config.activation;
    inner.x = hiddenStates;
    inner.weight = {.type = engine.type(), .data = group.data(innerWeight)};
    inner.bias = group.data(innerBias);
    inner.preActivation = buffers.preActivation;
    inner.y = buffers.activated;
    engine.run(engine.ops().linearForward, inner);
    x = buffers.activated;
    width = config.inner;
  }
  LinearForward last{
      .type = engine.type(), .rows = rows, .inputs = width, .outputs = 1, .xStride = width, .yStride = 1, .wideOutput = 1};
  last.x = x;
  last.weight = {.type = engine.type(), .data = group.data(weight)};
  last.bias = group.data(bias);
  last.y = value;
  engine.run(engine.ops().linearForward, last);
}

void Head::backward(const RowSet& rowSet, const void* hiddenStates, const HeadBuffers& buffers, const void* dValue,
                    const HeadBackwardBuffers& work, void* dHidden) {
  Engine& engine = group.engine();
  const int64_t rows = rowSet.rows;
  if (work.dValue)
    engine.run(engine.ops().narrow,
               Narrow{.type = engine.type(), .count = rows, .scale = rowSet.lossScale, .x = dValue, .y = work.dValue});
  const bool linear = config.inner == 0;
  const int64_t width = linear ? hidden : config.inner;
  LinearBackward last{.type = engine.type(),
                      .rows = rows,
                      .inputs = width,
                      .outputs = 1,
                      .xStride = width,
                      .dyStride = 1,
                      .dxStride = width};
  last.x = linear ? hiddenStates : buffers.activated;
  last.dy = work.dValue ? work.dValue : dValue;
  last.weight = {.type = engine.type(), .data = group.data(weight)};
  last.dx = linear ? dHidden : work.dInner;
  last.dWeight = group.gradient(weight);
  last.dBias = group.gradient(bias);
  engine.run(engine.ops().linearBackward, last);
  if (linear) return;

  engine.run(engine.ops().activationBackward, ActivationBackward{.type = engine.type(),
                                                                 .activation = config.activation,
                                                                 .count = rows * config.inner,
                                                                 .x = buffers.preActivation,
                                                                 .dy = work.dInner,
                                                                 .dx = work.dInner});
  LinearBackward inner{.type = engine.type(),
                       .rows = rows,
                       .inputs = hidden,
                       .outputs = config.inner,
                       .xStride = hidden,
                       .dyStride = config.inner,
                       .dxStride = hidden};
  inner.x = hiddenStates;
  inner.dy = work.dInner;
  inner.weight = {.type = engine.type(), .data = group.data(innerWeight)};
  inner.dx = dHidden;
  inner.dWeight = group.gradient(innerWeight);
  inner.dBias = group.gradient(innerBias);
  engine.run(engine.ops().linearBackward, inner);
}

}  // namespace rlhf
