#include "node/engine.h"

#include "node/settings.h"

namespace rlhf::node {

EngineWrap::EngineWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  guarded(info, [&]() -> Napi::Value {
    const Napi::Object options = info.Length() > 0 ? toObject(info[0], "options") : Napi::Object::New(info.Env());
    const int64_t threads = integer(options, "threads", defaultThreadCount());
    if (threads < 1 || threads > 1024) throwArgument(format("threads must be from 1 to 1024, got %lld", static_cast<long long>(threads)));
    const std::string instructionSet = text(options, "instructionSet", "");
    const Ops* ops = instructionSet.empty() ? &cpu::ops() : cpu::opsFor(instructionSet.c_str());
    if (!ops)
      throw Error(code::kUnsupported, format("this processor or build does not have the instruction set \"%s\"", instructionSet.c_str()));
    auto engine = std::make_shared<EngineHandle>();
    engine->device = std::make_unique<cpu::CpuDevice>(static_cast<int>(threads));
    engine->engine = std::make_shared<Engine>(*ops, engine->device.get(), DType::F32);
    engine->queue = CommandQueue::create(info.Env());
    std::shared_ptr<CommandQueue> queue = engine->queue;
    set(std::move(engine), std::move(queue));
    return info.Env().Undefined();
  });
}

Napi::Value EngineWrap::info(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const EngineHandle& engine = *handle();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("device", engine.engine->device()->name);
    result.Set("backend", engine.engine->ops().backend);
    result.Set("instructionSet", engine.engine->ops().instructionSet);
    result.Set("threads", engine.device->pool.size());
    return result;
  });
}

Napi::Value EngineWrap::createModel(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<EngineHandle> engine = handle();
    const ModelConfig config = toModelConfig(toObject(info[0], "config"));
    const bool trainable = toBoolean(info[1], "trainable");
    return engine->queue->submit(
        info.Env(),
        [engine, config, trainable] {
          auto model = std::make_shared<ModelHandle>();
          model->engine = engine;
          model->model = Model::create(engine->engine, config, trainable);
          model->noteParameters();
          return model;
        },
        [](Napi::Env env, const std::shared_ptr<ModelHandle>& model) -> Napi::Value {
          return wrap(env, env.GetInstanceData<AddonData>()->model, model);
        });
  });
}

void defineEngine(Napi::Env env, Napi::Object exports, AddonData& data) {
  const Napi::Function constructor = EngineWrap::DefineClass(
      env, EngineWrap::kName,
      {EngineWrap::InstanceAccessor<&EngineWrap::info>("info"),
       EngineWrap::InstanceMethod<&EngineWrap::createModel>("createModel"),
       EngineWrap::InstanceMethod("dispose", &EngineWrap::dispose)});
  data.engine = Napi::Persistent(constructor);
  exports.Set(EngineWrap::kName, constructor);
}

}  // namespace rlhf::node
