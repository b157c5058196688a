#include "node/kernels_model.h"

#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "model/model.h"
#include "node/arguments.h"
#include "node/kernels_arguments.h"
#include "node/kernels_backends.h"
#include "node/settings.h"

// Whole models for tests, on every backend and in every type. Arrays are Float64Arrays of the accumulators' values;
// complex ones hold real and imaginary parts in turn, so that gradients can be checked by the complex step.

namespace rlhf::kernels {
namespace {

using node::boolean;
using node::field;
using node::guarded;
using node::number;
using node::toObject;
using node::toText;

/// Makes a device refuse memory, to see what a failure leaves behind. Devices live as long as the process.
class AllocationLimit {
 public:
  /// Lets `count` more allocations, and recordings, succeed; −1: all of them again. With a reason those after them fail as all calls do on a device
  /// that is lost.
  static void set(Device* device, int64_t count, const std::string& reason) {
    const Functions& real = realOf(device);
    left() = count;
    loss() = reason;
    device->allocate = count < 0 ? real.allocate : [](Device* self, size_t bytes, void** out) {
      return left()-- > 0 ? realOf(self).allocate(self, bytes, out) : refusal(self);
    };
    if (!real.endCapture) return;
    device->endCapture = count < 0 ? real.endCapture : [](Device* self, Stream* stream, Graph** out) {
      const Status status = realOf(self).endCapture(self, stream, out);
      if (status != kOk || left()-- > 0) return status;
      self->destroyGraph(self, std::exchange(*out, nullptr));
      return refusal(self);
    };
  }

 private:
  struct Functions {
    decltype(Device::allocate) allocate;
    decltype(Device::endCapture) endCapture;
  };
  static const Functions& realOf(Device* device) {
    static std::map<Device*, Functions> functions;
    return functions.try_emplace(device, Functions{device->allocate, device->endCapture}).first->second;
  }
  static Status refusal(Device* device) {
    std::snprintf(device->error, sizeof device->error, "%s", loss().c_str());
    return loss().empty() ? kNoMemory : kDeviceFailure;
  }
  static int64_t& left() {
    static int64_t count = 0;
    return count;
  }
  static std::string& loss() {
    static std::string reason;
    return reason;
  }
};

class ModelWrap : public Napi::ObjectWrap<ModelWrap> {
 public:
  /// new Model(config, { backend, type, threads?, trainable?, storage?, compute?, beside? }); `beside` is a model whose engine this one shares
  explicit ModelWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelWrap>(info) {
    guarded(info, [&] {
      const Napi::Object options = toObject(info[1], "options");
      const int threads = static_cast<int>(node::integer(options, "threads", 1));
      if (options.Get("beside").IsUndefined()) {
        Backend& backend = openBackend(toText(field(options, "backend"), "backend"), threads);
        engine_ =
            std::make_shared<Engine>(backend.ops(), backend.device(), toDType(field(options, "type"), "type"),
                                     node::toComputeType(node::text(options, "compute", "float32")));
      } else {
        engine_ = Unwrap(toObject(options.Get("beside"), "beside"))->engine_;
      }
      model_ = Model::create(engine_, node::toModelConfig(toObject(info[0], "config")),
                             boolean(options, "trainable", false), storage(options));
      return info.Env().Undefined();
    });
  }

  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info) {
    return guarded(info, [&] {
      return toArray(info.Env(), model_->parameterData(toText(info[0], "name")),
                     size(toText(info[0], "name")));
    });
  }
  Napi::Value gradient(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  /// setParameter(name, values): as a weight file would write it, whatever the parameter is kept as.
  Napi::Value setParameter(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      const std::string name = toText(info[0], "name");
      const Napi::Float64Array array = info[1].As<Napi::Float64Array>();
      const std::vector<float> values(array.Data(), array.Data() + array.ElementLength());
      model_->writeParameter(name, values.data(), static_cast<int64_t>(values.size()));
    });
  }
  Napi::Value initialise(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      model_->initialise(node::toNumber(info[0], "std"),
                         static_cast<uint64_t>(node::toInteger(info[1], "seed")));
    });
  }
  Napi::Value addAdapter(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      model_->addAdapter(toText(info[0], "name"), node::toAdapterConfig(toObject(info[1], "config")));
    });
  }
  Napi::Value removeAdapter(const Napi::CallbackInfo& info) {
    return change(info, [&] { model_->removeAdapter(toText(info[0], "name")); });
  }
  Napi::Value mergeAdapter(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      model_->mergeAdapter(toText(info[0], "name"), info[1].IsBoolean() && node::toBoolean(info[1], "reversible"));
    });
  }
  Napi::Value unmergeAdapter(const Napi::CallbackInfo& info) {
    return change(info, [&] { model_->unmergeAdapter(toText(info[0], "name")); });
  }
  Napi::Value copyAdapter(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      model_->copyAdapter(toText(info[0], "from"), toText(info[1], "to"), node::toBoolean(info[2], "trainable"));
    });
  }
  Napi::Value linearLayers(const Napi::CallbackInfo& info) {
    return guarded(info, [&] { return node::toLinearLayerList(info.Env(), model_->linearLayers()); });
  }
  Napi::Value addHead(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      model_->addHead(toText(info[0], "name"), node::toHeadConfig(toObject(info[1], "config")));
    });
  }
  Napi::Value zeroGradients(const Napi::CallbackInfo& info) {
    return change(info, [&] { model_->zeroGradients(toText(info[0], "group")); });
  }
  Napi::Value setMaxLivePasses(const Napi::CallbackInfo& info) {
    return change(info, [&] { model_->setMaxLivePasses(node::toInteger(info[0], "count")); });
  }
  Napi::Value setRecomputeLayers(const Napi::CallbackInfo& info) {
    return change(info, [&] { model_->setRecomputeLayers(node::toBoolean(info[0], "recompute")); });
  }
  Napi::Value setLogitsBudget(const Napi::CallbackInfo& info) {
    return change(info,
                  [&] { model_->setLogitsBudget(static_cast<size_t>(node::toInteger(info[0], "bytes"))); });
  }
  Napi::Value failAllocationsAfter(const Napi::CallbackInfo& info) {
    return change(info, [&] {
      AllocationLimit::set(engine_->device(), node::toInteger(info[0], "count"), info[1].IsUndefined() ? "" : toText(info[1], "reason"));
    });
  }
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
  Napi::Value disposePass(const Napi::CallbackInfo& info) {
    return change(info, [&] { pass(info[0]).reset(); });
  }
  Napi::Value generate(const Napi::CallbackInfo& info);
  Napi::Value createOptimizer(const Napi::CallbackInfo& info);
  Napi::Value optimizerStep(const Napi::CallbackInfo& info);

 private:
  template <class Body>
  Napi::Value change(const Napi::CallbackInfo& info, Body body) {
    return guarded(info, [&]() -> Napi::Value {
      body();
      return info.Env().Undefined();
    });
  }

  static std::optional<DType> storage(const Napi::Object& options) {
    const std::string name = node::text(options, "storage", "");
    return name.empty() ? std::nullopt : std::optional<DType>(node::toStorageType(name));
  }
  bool narrow() const { return engine_->accumulator() == DType::F32; }
  /// float64 numbers per element as JavaScript sees them.
  int64_t components() const { return engine_->type() == DType::C128 ? 2 : 1; }
  int64_t size(const std::string& name) const;
  Napi::Value toArray(Napi::Env env, const void* source, int64_t count) const;
  /// Device memory with the values of a Float64Array of `count` elements; empty for undefined.
  DeviceMemory toDevice(Napi::Value value, const char* name, int64_t count) const;
  std::unique_ptr<Pass>& pass(Napi::Value handle);

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<Model> model_;
  std::vector<std::unique_ptr<Pass>> passes_;  // by the number that forward returned
  std::unique_ptr<Optimizer> optimizer_;
};

int64_t ModelWrap::size(const std::string& name) const {
  int64_t count = 1;
  for (const ParameterInfo& parameter : model_->parameters())
    if (parameter.name == name)
      for (const int64_t extent : parameter.shape) count *= extent;
  return count;
}

Napi::Value ModelWrap::toArray(Napi::Env env, const void* source, int64_t count) const {
  if (!source) return env.Null();
  const size_t elements = static_cast<size_t>(count * components());
  Napi::Float64Array array = Napi::Float64Array::New(env, elements);
  if (narrow()) {
    std::vector<float> values(elements);
    engine_->download(values.data(), source, elements * sizeof(float));
    engine_->synchronize();
    std::copy(values.begin(), values.end(), array.Data());
  } else {
    engine_->download(array.Data(), source, elements * sizeof(double));
    engine_->synchronize();
  }
  return array;
}

DeviceMemory ModelWrap::toDevice(Napi::Value value, const char* name, int64_t count) const {
  if (value.IsUndefined() || value.IsNull()) return {};
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array)
    throw Error(code::kArgument, format("%s must be a Float64Array", name));
  const Napi::Float64Array array = value.As<Napi::Float64Array>();
  const size_t elements = static_cast<size_t>(count * components());
  if (array.ElementLength() != elements)
    throw Error(code::kShape,
                format("%s must have %zu numbers, got %zu", name, elements, array.ElementLength()));
  DeviceMemory memory(*engine_, MemoryUse::Arrays, elements * (narrow() ? sizeof(float) : sizeof(double)), name);
  const std::vector<float> values(array.Data(), array.Data() + (narrow() ? elements : 0));
  engine_->upload(memory.data(), narrow() ? static_cast<const void*>(values.data()) : array.Data(), memory.bytes());
  engine_->synchronize();
  return memory;
}

Napi::Value ModelWrap::parameters(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return node::toParameterList(info.Env(), model_->parameters()); });
}

Napi::Value ModelWrap::gradient(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = toText(info[0], "name");
    return toArray(info.Env(), model_->gradientData(name), size(name));
  });
}

Napi::Value ModelWrap::write(const Napi::CallbackInfo& info) {
  return change(info, [&] {
    const std::string name = toText(info[0], "name");
    if (dtypeSize(engine_->type()) < dtypeSize(engine_->accumulator()))
      throw Error(code::kUnsupported, "write: a 16-bit model's parameters are not all of one type; use setParameter");
    const DeviceMemory values = toDevice(info[1], "values", size(name));
    engine_->copy(model_->parameterData(name), values.data(), values.bytes());
    engine_->synchronize();
  });
}

Napi::Value ModelWrap::memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    return node::toMemoryObject(info.Env(), model_->memory());
  });
}

/// forward(batch, options) → { pass, logProb, lse, entropy, value, kl }; options.reference is a pass's number, of the
/// model options.referenceModel or of this one
Napi::Value ModelWrap::forward(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const Napi::Object given = toObject(info[1], "options");
    ForwardOptions options = node::toForwardOptions(given);
    if (!given.Get("reference").IsUndefined()) {
      const Napi::Value other = given.Get("referenceModel");
      ModelWrap& owner = other.IsUndefined() ? *this : *Unwrap(toObject(other, "referenceModel"));
      options.reference = owner.pass(given.Get("reference")).get();
    }
    std::unique_ptr<Pass> pass = model_->forward(node::toBatch(toObject(info[0], "batch")), options);
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("logProb", toArray(info.Env(), pass->logProb(), pass->rows()));
    result.Set("lse", toArray(info.Env(), pass->lse(), pass->rows()));
    result.Set("entropy", toArray(info.Env(), pass->entropy(), pass->rows()));
    result.Set("value", toArray(info.Env(), pass->value(), pass->rows()));
    result.Set("kl", toArray(info.Env(), pass->kl(), pass->rows()));
    result.Set("pass", static_cast<double>(passes_.size()));
    passes_.push_back(std::move(pass));
    return result;
  });
}

std::unique_ptr<Pass>& ModelWrap::pass(Napi::Value handle) {
  const int64_t index = node::toInteger(handle, "pass");
  if (index < 0 || index >= static_cast<int64_t>(passes_.size()) || !passes_[static_cast<size_t>(index)])
    throw Error(code::kDisposed, format("there is no pass %lld", static_cast<long long>(index)));
  return passes_[static_cast<size_t>(index)];
}

/// backward(pass, { dLogProb?, dLse?, dEntropy?, dValue?, dKl? })
Napi::Value ModelWrap::backward(const Napi::CallbackInfo& info) {
  return change(info, [&] {
    Pass& target = *pass(info[0]);
    const Napi::Object upstream = toObject(info[1], "gradients");
    const auto array = [&](const char* name) { return toDevice(upstream.Get(name), name, target.rows()); };
    const DeviceMemory dLogProb = array("dLogProb"), dLse = array("dLse"), dEntropy = array("dEntropy"),
                       dValue = array("dValue"), dKl = array("dKl");
    model_->backward(target, {dLogProb.data(), dLse.data(), dEntropy.data(), dValue.data(), dKl.data()});
    engine_->synchronize();
  });
}

Napi::Value ModelWrap::generate(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::atomic<bool> cancel{false};
    const auto prompts = node::toPrompts(info[0]);
    return node::toGenerations(
        info.Env(),
        model_->generate(prompts, node::toGenerateOptions(toObject(info[1], "options")), {}, cancel));
  });
}

/// createOptimizer(groups, { beta1?, beta2?, eps?, weightDecay? }): the one that optimizerStep uses
Napi::Value ModelWrap::createOptimizer(const Napi::CallbackInfo& info) {
  return change(info, [&] {
    const Napi::Object options = toObject(info[1], "options");
    AdamWConfig config;
    config.beta1 = number(options, "beta1", config.beta1);
    config.beta2 = number(options, "beta2", config.beta2);
    config.eps = number(options, "eps", config.eps);
    config.weightDecay = number(options, "weightDecay", config.weightDecay);
    optimizer_ = std::make_unique<Optimizer>(model_, node::toTexts(info[0], "groups"), config);
  });
}

/// optimizerStep(learningRate, maxGradNorm, gradientScale) → { gradientNorm, skipped, steps }
Napi::Value ModelWrap::optimizerStep(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    if (!optimizer_) throw Error(code::kArgument, "call createOptimizer first");
    const Optimizer::Result step =
        optimizer_->step(node::toNumber(info[0], "learningRate"), node::toNumber(info[1], "maxGradNorm"),
                         node::toNumber(info[2], "gradientScale"));
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("gradientNorm", step.gradientNorm);
    result.Set("skipped", step.skipped);
    result.Set("steps", static_cast<double>(optimizer_->stepCount()));
    return result;
  });
}

}  // namespace

void defineModel(Napi::Env env, Napi::Object exports) {
  using W = ModelWrap;
  exports.Set(
      "Model",
      W::DefineClass(
          env, "Model",
          {W::InstanceMethod<&W::parameters>("parameters"), W::InstanceMethod<&W::read>("read"),
           W::InstanceMethod<&W::gradient>("gradient"), W::InstanceMethod<&W::write>("write"),
           W::InstanceMethod<&W::setParameter>("setParameter"),
           W::InstanceMethod<&W::initialise>("initialise"), W::InstanceMethod<&W::addAdapter>("addAdapter"),
           W::InstanceMethod<&W::removeAdapter>("removeAdapter"),
           W::InstanceMethod<&W::mergeAdapter>("mergeAdapter"),
           W::InstanceMethod<&W::unmergeAdapter>("unmergeAdapter"),
           W::InstanceMethod<&W::copyAdapter>("copyAdapter"), W::InstanceMethod<&W::linearLayers>("linearLayers"),
           W::InstanceMethod<&W::addHead>("addHead"),
           W::InstanceMethod<&W::zeroGradients>("zeroGradients"),
           W::InstanceMethod<&W::setMaxLivePasses>("setMaxLivePasses"),
           W::InstanceMethod<&W::failAllocationsAfter>("failAllocationsAfter"),
           W::InstanceMethod<&W::setRecomputeLayers>("setRecomputeLayers"),
           W::InstanceMethod<&W::setLogitsBudget>("setLogitsBudget"), W::InstanceMethod<&W::memory>("memory"),
           W::InstanceMethod<&W::forward>("forward"), W::InstanceMethod<&W::backward>("backward"),
           W::InstanceMethod<&W::disposePass>("disposePass"), W::InstanceMethod<&W::generate>("generate"),
           W::InstanceMethod<&W::createOptimizer>("createOptimizer"),
           W::InstanceMethod<&W::optimizerStep>("optimizerStep")}));
}

}  // namespace rlhf::kernels
