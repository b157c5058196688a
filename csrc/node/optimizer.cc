#include "node/optimizer.h"

#include "node/model.h"

namespace rlhf::node {

OptimizerWrap::OptimizerWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ModelHandle> model = ModelWrap::unwrap(info[0], "model").handle();
    const std::vector<std::string> groups = toTexts(info[1], "groups");
    const Napi::Object object = toObject(info[2], "config");
    AdamWConfig config;
    config.beta1 = number(object, "beta1", config.beta1);
    config.beta2 = number(object, "beta2", config.beta2);
    config.eps = number(object, "eps", config.eps);
    config.weightDecay = number(object, "weightDecay", config.weightDecay);
    config.seed = static_cast<uint64_t>(integer(object, "seed", 0));
    auto optimizer = std::make_shared<OptimizerHandle>();
    optimizer->model = model;
    model->engine->queue->runAndWait(
        [&] { optimizer->optimizer = std::make_unique<Optimizer>(model->model, groups, config); });
    set(std::move(optimizer), model->engine->queue);
    return info.Env().Undefined();
  });
}

Napi::Value OptimizerWrap::step(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<OptimizerHandle> optimizer = handle();
    const Napi::Object options = toObject(info[0], "options");
    const double learningRate = toNumber(field(options, "learningRate"), "learningRate");
    const double maxGradNorm = number(options, "maxGradNorm", 0);
    const double gradientScale = number(options, "gradientScale", 1);
    return optimizer->model->engine->queue->submit(
        info.Env(), [=] { return optimizer->optimizer->step(learningRate, maxGradNorm, gradientScale); },
        [](Napi::Env env, const Optimizer::Result& result) -> Napi::Value {
          Napi::Object object = Napi::Object::New(env);
          object.Set("gradNorm", result.gradientNorm);
          object.Set("skipped", result.skipped);
          object.Set("lossScale", result.lossScale);
          return object;
        });
  });
}

Napi::Value OptimizerWrap::command(const Napi::CallbackInfo& info, std::function<void(Optimizer&)> body, const Pins& pins) {
  const std::shared_ptr<OptimizerHandle> optimizer = handle();
  return optimizer->model->engine->queue->submit(
      info.Env(),
      [optimizer, body = std::move(body)] {
        body(*optimizer->optimizer);
        return true;
      },
      [pins](Napi::Env env, bool) -> Napi::Value { return env.Undefined(); });
}

Napi::Value OptimizerWrap::stepCount(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<OptimizerHandle> optimizer = handle();
    int64_t steps = 0;
    optimizer->model->engine->queue->runAndWait([&] { steps = optimizer->optimizer->stepCount(); });
    return Napi::Number::New(info.Env(), static_cast<double>(steps));
  });
}

Napi::Value OptimizerWrap::setStepCount(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const int64_t steps = toInteger(info[0], "steps");
    return command(info, [steps](Optimizer& optimizer) { optimizer.setStepCount(steps); }, nullptr);
  });
}

Napi::Value OptimizerWrap::lossScale(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<OptimizerHandle> optimizer = handle();
    std::optional<std::pair<double, int64_t>> scale;
    optimizer->model->engine->queue->runAndWait([&] { scale = optimizer->optimizer->lossScale(); });
    if (!scale) return info.Env().Null();
    Napi::Array result = Napi::Array::New(info.Env(), 2);
    result.Set(0u, scale->first);
    result.Set(1u, static_cast<double>(scale->second));
    return result;
  });
}

Napi::Value OptimizerWrap::setLossScale(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const double scale = toNumber(info[0], "scale");
    const int64_t steps = toInteger(info[1], "steps");
    return command(info, [=](Optimizer& optimizer) { optimizer.setLossScale(scale, steps); }, nullptr);
  });
}

Napi::Value OptimizerWrap::exportMoments(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string parameter = toText(info[0], "parameter");
    const Pins pins = makePins();
    const FloatSpan m = toFloats(info[1], "m", pins), v = toFloats(info[2], "v", pins);
    if (m.length != v.length) throwArgument("m and v must have the same length");
    return command(
        info, [=](Optimizer& optimizer) { optimizer.exportMoments(parameter, m.data, v.data, m.length); }, pins);
  });
}

Napi::Value OptimizerWrap::importMoments(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string parameter = toText(info[0], "parameter");
    const Floats m = copyFloats(info[1], "m"), v = copyFloats(info[2], "v");
    if (m->size() != v->size()) throwArgument("m and v must have the same length");
    return command(
        info,
        [=](Optimizer& optimizer) {
          optimizer.importMoments(parameter, m->data(), v->data(), static_cast<int64_t>(m->size()));
        },
        nullptr);
  });
}

void defineOptimizer(Napi::Env env, Napi::Object exports, AddonData& data) {
  using W = OptimizerWrap;
  const Napi::Function constructor = W::DefineClass(
      env, W::kName,
      {W::InstanceMethod<&W::step>("step"), W::InstanceMethod<&W::stepCount>("stepCount"),
       W::InstanceMethod<&W::setStepCount>("setStepCount"), W::InstanceMethod<&W::lossScale>("lossScale"),
       W::InstanceMethod<&W::setLossScale>("setLossScale"), W::InstanceMethod<&W::exportMoments>("exportMoments"),
       W::InstanceMethod<&W::importMoments>("importMoments"), W::InstanceMethod("dispose", &W::dispose)});
  data.optimizer = Napi::Persistent(constructor);
  exports.Set(W::kName, constructor);
}

}  // namespace rlhf::node
