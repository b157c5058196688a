#include <algorithm>
#include <cmath>
#include <map>

#include "model/loss_scale.h"
#include "model/parameters.h"

namespace rlhf {
namespace {

void requireSetting(bool fits, const char* name, double value, const char* allowed) {
  if (!fits) throw Error(code::kArgument, format("AdamW: %s is %g, expected %s", name, value, allowed));
}

}  // namespace

struct Optimizer::Impl {
  struct Moments {
    int64_t count = 0;  // elements of the group's flat arrays
    DeviceMemory m, v;  // accumulator type
  };

  std::shared_ptr<Model> model;
  std::vector<std::string> groups;
  AdamWConfig config;
  int64_t steps = 0;
  std::map<std::string, Moments> moments;
  DeviceMemory squares;  // float64 per group

  /// The moments of a group, zero before its first update. Groups are looked up by name each time, since they
  /// can be removed.
  Moments& of(ParameterGroup& group) {
    Moments& state = moments[group.name()];
    if (!state.m.data()) {
      Engine& engine = group.engine();
      const size_t bytes = static_cast<size_t>(group.count()) * dtypeSize(engine.accumulator());
      state.count = group.count();
      state.m = DeviceMemory(engine, MemoryUse::Optimizer, bytes, "AdamW's first moments");
      state.v = DeviceMemory(engine, MemoryUse::Optimizer, bytes, "AdamW's second moments");
      engine.zero(state.m.data(), bytes);
      engine.zero(state.v.data(), bytes);
    }
    if (state.count != group.count())
      throw Error(code::kShape,
                  format("group \"%s\" was replaced by one of another size: make a new optimizer",
                         group.name().c_str()));
    return state;
  }

  /// Finds a parameter and its place in the moments' arrays.
  struct Place {
    ParameterGroup& group;
    int index;
    char* m;
    char* v;
  };
  Place find(const std::string& name, int64_t count) {
    std::vector<std::string> known;
    for (const std::string& groupName : groups) {
      ParameterGroup& group = model->group(groupName);
      const int index = group.find(name);
      for (const Parameter& parameter : group.parameters()) known.push_back(parameter.name);
      if (index < 0) continue;
      const Parameter& parameter = group.parameter(index);
      if (parameter.count != count)
        throw Error(code::kShape,
                    format("parameter \"%s\" has %lld elements, got %lld", name.c_str(),
                           static_cast<long long>(parameter.count), static_cast<long long>(count)));
      Moments& state = of(group);
      const size_t offset = static_cast<size_t>(parameter.offset) * dtypeSize(group.engine().accumulator());
      return {group, index, state.m.data() + offset, state.v.data() + offset};
    }
    throw Error(code::kUnknownName, format("the optimizer has no parameter \"%s\"; did you mean \"%s\"?",
                                           name.c_str(), nearestName(name, known).c_str()));
  }

  double gradientNorm();
  void update(double learningRate, double gradientScale);
};

Optimizer::Optimizer(std::shared_ptr<Model> model, std::vector<std::string> groups, const AdamWConfig& config)
    : impl_(std::make_unique<Impl>()) {
  requireSetting(config.beta1 >= 0 && config.beta1 < 1, "beta1", config.beta1, "0 to below 1");
  requireSetting(config.beta2 >= 0 && config.beta2 < 1, "beta2", config.beta2, "0 to below 1");
  requireSetting(config.eps > 0 && std::isfinite(config.eps), "eps", config.eps, "above 0");
  requireSetting(config.weightDecay >= 0 && std::isfinite(config.weightDecay), "weightDecay",
                 config.weightDecay, "at least 0");
  if (groups.empty()) throw Error(code::kArgument, "an optimizer needs at least one parameter group");
  for (size_t i = 0; i < groups.size(); ++i) {
    if (!model->group(groups[i]).trainable())
      throw Error(
          code::kArgument,
          format("group \"%s\" is frozen: create the model as trainable, or train an adapter or a head",
                 groups[i].c_str()));
    if (std::find(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(i), groups[i]) !=
        groups.begin() + static_cast<std::ptrdiff_t>(i))
      throw Error(code::kArgument, format("group \"%s\" is named twice", groups[i].c_str()));
  }
  impl_->squares = DeviceMemory(model->engine(), MemoryUse::Optimizer, groups.size() * sizeof(double), "the gradient norm");
  impl_->model = std::move(model);
  impl_->groups = std::move(groups);
  impl_->config = config;
}

Optimizer::~Optimizer() = default;

double Optimizer::Impl::gradientNorm() {
  Engine& engine = model->engine();
  engine.reserveScratch(ScratchLimits{});  // there is none before the engine's first pass
  std::vector<double> sums(groups.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    ParameterGroup& group = model->group(groups[i]);
    engine.run(engine.ops().squaredNorm, SquaredNorm{.type = engine.accumulator(),
                                                     .count = group.count(),
                                                     .x = group.gradients(),
                                                     .out = reinterpret_cast<double*>(squares.data()) + i});
  }
  engine.download(sums.data(), squares.data(), sums.size() * sizeof(double));
  engine.synchronize();
  double total = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    const double scale = model->group(groups[i]).lossScale();
    total += sums[i] / (scale * scale);
  }
  return std::sqrt(total);
}

void Optimizer::Impl::update(double learningRate, double gradientScale) {
  for (const std::string& name : groups) {
    ParameterGroup& group = model->group(name);
    Engine& engine = group.engine();
    Moments& state = of(group);
    AdamW arguments{.step = steps,
                    .seed = config.seed,
                    .learningRate = learningRate,
                    .beta1 = config.beta1,
                    .beta2 = config.beta2,
                    .eps = config.eps,
                    .weightDecay = config.weightDecay,
                    .gradientScale = gradientScale / group.lossScale()};
    for (const ParameterRun& run : group.runs()) {
      const size_t offset = static_cast<size_t>(run.first) * dtypeSize(engine.accumulator());
      arguments.type = run.type;
      arguments.count = run.count;
      arguments.gradient = static_cast<char*>(group.gradients()) + offset;
      arguments.parameter = run.parameters;
      arguments.master = run.master;
      arguments.m = state.m.data() + offset;
      arguments.v = state.v.data() + offset;
      engine.run(engine.ops().adamW, arguments);
    }
  }
}

Optimizer::Result Optimizer::step(double learningRate, double maxGradNorm, double gradientScale) {
  requireSetting(learningRate >= 0 && std::isfinite(learningRate), "learningRate", learningRate,
                 "at least 0");
  requireSetting(std::isfinite(gradientScale), "gradientScale", gradientScale, "a finite number");
  requireSetting(!std::isnan(maxGradNorm), "maxGradNorm", maxGradNorm, "a number; 0 does not clip");
  for (const std::string& name : impl_->groups) impl_->of(impl_->model->group(name));  // all of them or no update
  Result result;
  result.gradientNorm = impl_->gradientNorm() * std::abs(gradientScale);
  result.skipped = !std::isfinite(result.gradientNorm);
  LossScale& lossScale = impl_->model->lossScale();
  result.lossScale = lossScale.value();
  lossScale.noteStep(!result.skipped);
  if (!result.skipped) {
    // As torch.nn.utils.clip_grad_norm_, its 1e-6 included.
    const double clip = maxGradNorm > 0 ? std::min(1.0, maxGradNorm / (result.gradientNorm + 1e-6)) : 1.0;
    ++impl_->steps;
    impl_->update(learningRate, gradientScale * clip);
  }
  for (const std::string& name : impl_->groups) impl_->model->zeroGradients(name);
  return result;
}

int64_t Optimizer::stepCount() const { return impl_->steps; }

std::optional<std::pair<double, int64_t>> Optimizer::lossScale() const {
  const LossScale& scale = impl_->model->lossScale();
  if (!scale.isDynamic()) return {};
  return std::pair{scale.value(), scale.state().steps};
}

void Optimizer::setLossScale(double scale, int64_t steps) {
  requireSetting(scale >= 1 && std::isfinite(scale), "the loss scale", scale, "at least 1");
  requireSetting(steps >= 0, "the steps of a loss scale", static_cast<double>(steps), "at least 0");
  impl_->model->lossScale().restore({scale, steps});
}

void Optimizer::exportMoments(const std::string& parameter, float* m, float* v, int64_t count) {
  const Impl::Place place = impl_->find(parameter, count);
  const DType type = place.group.engine().accumulator();
  place.group.readFrom(place.index, place.m, type, m);
  place.group.readFrom(place.index, place.v, type, v);
}

void Optimizer::importMoments(const std::string& parameter, const float* m, const float* v, int64_t count) {
  const Impl::Place place = impl_->find(parameter, count);
  const DType type = place.group.engine().accumulator();
  place.group.writeTo(place.index, place.m, type, m);
  place.group.writeTo(place.index, place.v, type, v);
}

void Optimizer::setStepCount(int64_t steps) {
  if (steps < 0)
    throw Error(code::kArgument,
                format("AdamW's step count must be at least 0, got %lld", static_cast<long long>(steps)));
  impl_->steps = steps;
}

}  // namespace rlhf
