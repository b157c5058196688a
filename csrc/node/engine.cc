#include "node/engine.h"

#include "node/cuda_plugin.h"
#include "node/settings.h"
#include "ops/entry.h"

namespace rlhf::node {
namespace {

struct Backend {
  const Ops* ops;
  std::shared_ptr<Device> device;
  int threads;
  bool narrowActivations;  // products of a narrow type are of activations of that type; else only their factors are rounded
};

Backend cpuBackend(const Napi::Object& options) {
  const int64_t threads = integer(options, "threads", defaultThreadCount());
  if (threads < 1 || threads > 1024) throwArgument(format("threads must be from 1 to 1024, got %lld", static_cast<long long>(threads)));
  const std::string instructionSet = text(options, "instructionSet", "");
  const Ops* ops = instructionSet.empty() ? &cpu::ops() : cpu::opsFor(instructionSet.c_str());
  if (!ops)
    throw Error(code::kUnsupported, format("this processor or build does not have the instruction set \"%s\"", instructionSet.c_str()));
  return {ops, std::make_shared<cpu::CpuDevice>(static_cast<int>(threads)), static_cast<int>(threads), false};
}

/// CUDA device 0. Throws Error unless models can run on it.
Backend cudaBackend() {
  const Ops& ops = cudaOps();
  std::shared_ptr<Device> device = openCudaDevice(0);
  std::string missing;  // weights are packed for the CPU alone
#define RLHF_NAME_MISSING(name, Arguments) \
  if (!ops.name && !std::string(#name).ends_with("packWeight")) missing += missing.empty() ? #name : ", " #name;
  RLHF_FOR_EACH_OP(RLHF_NAME_MISSING)
#undef RLHF_NAME_MISSING
  if (!missing.empty())
    throw Error(code::kUnsupported, "models do not run on CUDA in this version; its backend lacks " + missing + ". Use device \"cpu\"");
  return {&ops, std::move(device), 0, true};
}

Backend toBackend(const Napi::Object& options) {
  const std::string device = text(options, "device", "cpu");
  if (device == "cpu") return cpuBackend(options);
  if (device == "cuda") return cudaBackend();
  throwArgument("device must be \"cpu\" or \"cuda\", got \"" + device + "\"");
}

Napi::Value requireCuda(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    cudaBackend();
    return info.Env().Undefined();
  });
}

}  // namespace

EngineWrap::EngineWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  guarded(info, [&]() -> Napi::Value {
    const Napi::Object options = info.Length() > 0 ? toObject(info[0], "options") : Napi::Object::New(info.Env());
    const Backend backend = toBackend(options);
    const DType product = toComputeType(text(options, "compute", "float32"));
    const DType type = backend.narrowActivations ? product : DType::F32, compute = backend.narrowActivations ? DType::F32 : product;
    auto engine = std::make_shared<EngineHandle>();
    engine->device = backend.device;
    engine->threads = backend.threads;
    engine->engine = boolean(options, "planning", false)
                         ? Engine::planning(*backend.ops, *engine->device, type, compute)
                         : std::make_shared<Engine>(*backend.ops, engine->device.get(), type, compute);
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
    result.Set("threads", engine.threads);
    const DType type = engine.engine->type();
    result.Set("compute", dtypeName(type == DType::F32 ? engine.engine->compute() : type));
    result.Set("bfloat16Kernel", cpu::bfloat16KernelName());
    return result;
  });
}

/// limits() → { model, computeCapability, memoryBytes, freeBytes }, as the device's driver states them; "" and 0 where it states nothing
Napi::Value EngineWrap::limits(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Device* const device = handle()->engine->device();
    DeviceLimits limits;
    if (const Status status = device->limits(device, &limits))
      throw Error(errorCodeOf(status), format("%s does not tell its limits: %s", device->name, device->error));
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("model", limits.model);
    result.Set("computeCapability", static_cast<double>(limits.computeCapability));
    result.Set("memoryBytes", static_cast<double>(limits.memoryBytes));
    result.Set("freeBytes", static_cast<double>(limits.freeBytes));
    return result;
  });
}

Napi::Value EngineWrap::createModel(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<EngineHandle> engine = handle();
    const ModelConfig config = toModelConfig(toObject(info[0], "config"));
    const bool trainable = toBoolean(info[1], "trainable");
    const DType storage = info[2].IsUndefined() ? DType::F32 : toStorageType(toText(info[2], "dtype"));
    return engine->queue->submit(
        info.Env(),
        [engine, config, trainable, storage] {
          auto model = std::make_shared<ModelHandle>();
          model->engine = engine;
          model->model = Model::create(engine->engine, config, trainable, storage);
          model->noteParameters();
          return model;
        },
        [](Napi::Env env, const std::shared_ptr<ModelHandle>& model) -> Napi::Value {
          return wrap(env, env.GetInstanceData<AddonData>()->model, model);
        });
  });
}

Napi::Value EngineWrap::memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Engine& engine = *handle()->engine;
    const MemoryLedger& ledger = engine.ledger();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("held", toMemoryObject(info.Env(), ledger.held()));
    result.Set("peak", toMemoryObject(info.Env(), ledger.peak()));
    result.Set("peakTotal", static_cast<double>(ledger.peakTotal()));
    result.Set("budget", static_cast<double>(ledger.budget()));
    result.Set("allocations", static_cast<double>(engine.allocations()));
    return result;
  });
}

/// { toDevice, toHost }, each { count, bytes }
Napi::Value EngineWrap::copies(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const Engine& engine = *handle()->engine;
    Napi::Object result = Napi::Object::New(info.Env());
    for (const auto& [name, copies] : {std::pair{"toDevice", &engine.uploads()}, std::pair{"toHost", &engine.downloads()}}) {
      Napi::Object counted = Napi::Object::New(info.Env());
      counted.Set("count", static_cast<double>(copies->count));
      counted.Set("bytes", static_cast<double>(copies->bytes));
      result.Set(name, counted);
    }
    return result;
  });
}

Napi::Value EngineWrap::setMemoryBudget(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const double bytes = toNumber(info[0], "bytes");
    if (!(bytes > 0)) throwArgument(format("the memory budget must be above 0 bytes, got %g", bytes));
    handle()->engine->ledger().setBudget(bytes < 0x1p63 ? static_cast<size_t>(bytes) : SIZE_MAX);
    return info.Env().Undefined();
  });
}

void defineEngine(Napi::Env env, Napi::Object exports, AddonData& data) {
  const Napi::Function constructor = EngineWrap::DefineClass(
      env, EngineWrap::kName,
      {EngineWrap::InstanceAccessor<&EngineWrap::info>("info"),
       EngineWrap::InstanceMethod<&EngineWrap::limits>("limits"),
       EngineWrap::InstanceMethod<&EngineWrap::createModel>("createModel"),
       EngineWrap::InstanceMethod<&EngineWrap::memory>("memory"),
       EngineWrap::InstanceMethod<&EngineWrap::copies>("copies"),
       EngineWrap::InstanceMethod<&EngineWrap::setMemoryBudget>("setMemoryBudget"),
       EngineWrap::InstanceMethod("dispose", &EngineWrap::dispose)});
  data.engine = Napi::Persistent(constructor);
  exports.Set(EngineWrap::kName, constructor);
  exports.Set("requireCuda", Napi::Function::New(env, requireCuda, "requireCuda"));
}

}  // namespace rlhf::node
