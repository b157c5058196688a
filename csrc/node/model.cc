#include "node/model.h"

#include <functional>
#include <numeric>

#include "model/weights_file.h"
#include "node/pass.h"
#include "node/settings.h"

namespace rlhf::node {
namespace {

DType toStoredType(const std::string& name) {
  if (name == "F32") return DType::F32;
  if (name == "F64") return DType::F64;
  if (name == "F16") return DType::F16;
  if (name == "BF16") return DType::BF16;
  throw Error(code::kWeights, format("data type %s is not supported; F32, F16, BF16 and F64 are", name.c_str()));
}

/// Hands tokens to a JavaScript callback as they are drawn. An exception thrown there cancels the generation.
class TokenListener {
 public:
  TokenListener(Napi::Function callback, std::shared_ptr<CommandQueue> queue, std::shared_ptr<std::atomic<bool>> cancel)
      : callback_(std::make_shared<Napi::FunctionReference>(Napi::Persistent(callback))),
        queue_(std::move(queue)),
        cancel_(std::move(cancel)) {}

  void operator()(int64_t sequence, int32_t token) const {
    queue_->notify(
        [callback = callback_, sequence, token](Napi::Env env) {
          callback->Call({Napi::Number::New(env, static_cast<double>(sequence)), Napi::Number::New(env, token)});
        },
        [cancel = cancel_](const std::string&) { cancel->store(true); });
  }

 private:
  std::shared_ptr<Napi::FunctionReference> callback_;
  std::shared_ptr<CommandQueue> queue_;
  std::shared_ptr<std::atomic<bool>> cancel_;
};

/// A pass on the model's own engine, whose commands then run one after the other; null for undefined.
std::shared_ptr<PassHandle> toReference(Napi::Value value, const ModelHandle& model) {
  if (value.IsUndefined()) return nullptr;
  const std::shared_ptr<PassHandle> pass = PassWrap::unwrap(value, "reference").handle();
  if (pass->model->engine != model.engine) throwArgument("the reference pass is on another engine");
  return pass;
}

/// As float32, which is most of what a model holds while nothing is computed; none of an engine that only counts.
int64_t bytesOfWeights(const ModelHandle& model) {
  if (model.engine->engine->plans()) return 0;
  int64_t elements = 0;
  for (const ParameterInfo& parameter : model.parameters())
    elements += std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1}, std::multiplies<>());
  return elements * static_cast<int64_t>(sizeof(float));
}

}  // namespace

ModelWrap::ModelWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  std::shared_ptr<ModelHandle> model = handleFrom<ModelHandle>(info, kName);
  std::shared_ptr<CommandQueue> queue = model->engine->queue;
  const int64_t bytes = bytesOfWeights(*model);
  set(std::move(model), std::move(queue), bytes);
}

Napi::Value ModelWrap::change(const Napi::CallbackInfo& info, const std::function<void(Model&)>& body) {
  const std::shared_ptr<ModelHandle> model = handle();
  model->engine->queue->runAndWait([&] {
    body(*model->model);
    model->noteParameters();
  });
  return info.Env().Undefined();
}

Napi::Value ModelWrap::command(const Napi::CallbackInfo& info, std::function<void(Model&)> body, const Pins& pins) {
  const std::shared_ptr<ModelHandle> model = handle();
  return model->engine->queue->submit(
      info.Env(),
      [model, body = std::move(body)] {
        body(*model->model);
        model->engine->engine->synchronize();
        return true;
      },
      [pins](Napi::Env env, bool) -> Napi::Value { return env.Undefined(); });
}

Napi::Value ModelWrap::parameters(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return toParameterList(info.Env(), handle()->parameters()); });
}

Napi::Value ModelWrap::linearLayers(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return toLinearLayerList(info.Env(), handle()->model->linearLayers()); });
}

Napi::Value ModelWrap::memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    MemoryBytes memory{};
    const std::shared_ptr<ModelHandle> model = handle();
    model->engine->queue->runAndWait([&] { memory = model->model->memory(); });
    return toMemoryObject(info.Env(), memory);
  });
}

Napi::Value ModelWrap::setMaxLivePasses(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const int64_t count = toInteger(info[0], "count");
    return change(info, [&](Model& model) { model.setMaxLivePasses(count); });
  });
}

Napi::Value ModelWrap::setRecomputeLayers(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const bool recompute = toBoolean(info[0], "recompute");
    return change(info, [&](Model& model) { model.setRecomputeLayers(recompute); });
  });
}

Napi::Value ModelWrap::setPacksBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const bool packs = toBoolean(info[0], "packs");
    return change(info, [&](Model& model) { model.setPacksBackward(packs); });
  });
}

Napi::Value ModelWrap::mostKeptPredictions(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ModelHandle> model = handle();
    int64_t count = 0;
    model->engine->queue->runAndWait([&] { count = model->model->mostKeptPredictions(); });
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  });
}

Napi::Value ModelWrap::addAdapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    const AdapterConfig config = toAdapterConfig(toObject(info[1], "config"));
    return change(info, [&](Model& model) { model.addAdapter(name, config); });
  });
}

Napi::Value ModelWrap::removeAdapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    return change(info, [&](Model& model) { model.removeAdapter(name); });
  });
}

Napi::Value ModelWrap::addHead(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    const HeadConfig config = toHeadConfig(toObject(info[1], "config"));
    return change(info, [&](Model& model) { model.addHead(name, config); });
  });
}

Napi::Value ModelWrap::removeHead(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    return change(info, [&](Model& model) { model.removeHead(name); });
  });
}

Napi::Value ModelWrap::initialise(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const double std = toNumber(info[0], "std");
    const uint64_t seed = static_cast<uint64_t>(toInteger(info[1], "seed"));
    return command(info, [std, seed](Model& model) { model.initialise(std, seed); }, nullptr);
  });
}

Napi::Value ModelWrap::queuedChange(const Napi::CallbackInfo& info, std::function<void(Model&)> body) {
  const auto change = [model = handle(), body = std::move(body)](Model& target) {
    body(target);
    model->noteParameters();
  };
  return command(info, change, nullptr);
}

Napi::Value ModelWrap::copyAdapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string from = toText(info[0], "from"), to = toText(info[1], "to");
    const bool trainable = toBoolean(info[2], "trainable");
    return queuedChange(info, [=](Model& model) { model.copyAdapter(from, to, trainable); });
  });
}

Napi::Value ModelWrap::mergeAdapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    const bool reversible = toBoolean(info[1], "reversible");
    return queuedChange(info, [=](Model& model) { model.mergeAdapter(name, reversible); });
  });
}

Napi::Value ModelWrap::unmergeAdapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    return queuedChange(info, [=](Model& model) { model.unmergeAdapter(name); });
  });
}

Napi::Value ModelWrap::loadParameter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    const Napi::Object source = toObject(info[1], "source");
    const std::string path = toText(field(source, "path"), "path");
    const int64_t offset = toInteger(field(source, "offset"), "offset");
    const int64_t count = toInteger(field(source, "count"), "count");
    const DType type = toStoredType(toText(field(source, "dtype"), "dtype"));
    return command(
        info, [=](Model& model) { loadParameterFromFile(model, name, path, offset, count, type); }, nullptr);
  });
}

Napi::Value ModelWrap::writeParameter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    const Floats values = copyFloats(info[1], "values");
    return command(
        info,
        [=](Model& model) { model.writeParameter(name, values->data(), static_cast<int64_t>(values->size())); },
        nullptr);
  });
}

Napi::Value ModelWrap::read(const Napi::CallbackInfo& info, void (Model::*reader)(const std::string&, float*, int64_t)) {
  const std::string name = toText(info[0], "name");
  const Pins pins = makePins();
  const FloatSpan values = toFloats(info[1], "values", pins);
  return command(info, [=](Model& model) { (model.*reader)(name, values.data, values.length); }, pins);
}

Napi::Value ModelWrap::readParameter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return read(info, &Model::readParameter); });
}

Napi::Value ModelWrap::readGradient(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return read(info, &Model::readGradient); });
}

Napi::Value ModelWrap::zeroGradients(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string group = toText(info[0], "group");
    return command(info, [group](Model& model) { model.zeroGradients(group); }, nullptr);
  });
}

Napi::Value ModelWrap::forward(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ModelHandle> model = handle();
    Batch batch = toBatch(toObject(info[0], "batch"));
    const Napi::Object given = toObject(info[1], "options");
    ForwardOptions options = toForwardOptions(given);
    const std::shared_ptr<PassHandle> reference = toReference(given.Get("reference"), *model);
    if (reference) options.reference = reference->pass.get();
    return model->engine->queue->submit(
        info.Env(),
        [model, batch = std::move(batch), options, reference] {
          auto pass = std::make_shared<PassHandle>();
          pass->model = model;
          pass->pass = model->model->forward(batch, options);
          model->engine->engine->synchronize();
          return pass;
        },
        [](Napi::Env env, const std::shared_ptr<PassHandle>& pass) -> Napi::Value {
          return wrap(env, env.GetInstanceData<AddonData>()->pass, pass);
        });
  });
}

Napi::Value ModelWrap::generate(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ModelHandle> model = handle();
    const std::shared_ptr<CommandQueue> queue = model->engine->queue;
    const auto prompts = toPrompts(info[0]);
    const GenerateOptions options = toGenerateOptions(toObject(info[1], "options"));
    const auto cancel = queue->makeCancelFlag();
    std::function<void(int64_t, int32_t)> listener;
    if (!info[2].IsUndefined()) listener = TokenListener(toFunction(info[2], "onToken"), queue, cancel);
    // The listener holds a JavaScript function, so its last owner is the settling closure, on the event loop.
    const auto held = std::make_shared<std::function<void(int64_t, int32_t)>>(std::move(listener));
    const Napi::Promise promise = queue->submit(
        info.Env(),
        [model, prompts, options, cancel, held] { return model->model->generate(prompts, options, *held, *cancel); },
        [held](Napi::Env env, const std::vector<Generation>& generations) { return toGenerations(env, generations); });
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("promise", promise);
    result.Set("cancel", Napi::Function::New(info.Env(), [cancel](const Napi::CallbackInfo&) { cancel->store(true); }));
    return result;
  });
}

void defineModel(Napi::Env env, Napi::Object exports, AddonData& data) {
  using W = ModelWrap;
  const Napi::Function constructor = W::DefineClass(
      env, W::kName,
      {W::InstanceMethod<&W::parameters>("parameters"), W::InstanceMethod<&W::linearLayers>("linearLayers"),
       W::InstanceMethod<&W::memory>("memory"), W::InstanceMethod<&W::setMaxLivePasses>("setMaxLivePasses"),
       W::InstanceMethod<&W::setRecomputeLayers>("setRecomputeLayers"),
       W::InstanceMethod<&W::setPacksBackward>("setPacksBackward"),
       W::InstanceMethod<&W::mostKeptPredictions>("mostKeptPredictions"),
       W::InstanceMethod<&W::addAdapter>("addAdapter"), W::InstanceMethod<&W::removeAdapter>("removeAdapter"),
       W::InstanceMethod<&W::addHead>("addHead"), W::InstanceMethod<&W::removeHead>("removeHead"),
       W::InstanceMethod<&W::initialise>("initialise"), W::InstanceMethod<&W::mergeAdapter>("mergeAdapter"),
       W::InstanceMethod<&W::copyAdapter>("copyAdapter"), W::InstanceMethod<&W::unmergeAdapter>("unmergeAdapter"),
       W::InstanceMethod<&W::loadParameter>("loadParameter"), W::InstanceMethod<&W::writeParameter>("writeParameter"),
       W::InstanceMethod<&W::readParameter>("readParameter"), W::InstanceMethod<&W::readGradient>("readGradient"),
       W::InstanceMethod<&W::zeroGradients>("zeroGradients"), W::InstanceMethod<&W::forward>("forward"),
       W::InstanceMethod<&W::forwardBackward>("forwardBackward"),
       W::InstanceMethod<&W::generate>("generate"), W::InstanceMethod("dispose", &W::dispose)});
  data.model = Napi::Persistent(constructor);
  exports.Set(W::kName, constructor);
}

}  // namespace rlhf::node
