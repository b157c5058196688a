#include "model/mlp.h"

#include "node/array_call.h"
#include "node/settings.h"

// Small networks on arrays, and the optimizer's update of one flat array.

namespace rlhf::node {
namespace {

/// The network and its batch: as many rows as x holds.
struct MlpCall {
  MlpShape shape;
  int64_t rows = 0;

  MlpCall(const Napi::Object& arguments, int64_t elements) {
    shape.sizes = toIntegers(field(arguments, "sizes"), "sizes");
    shape.activation = toActivation(text(arguments, "activation", "tanh"));
    shape.validate();
    rows = elements / shape.inputs();
    if (rows < 1 || rows * shape.inputs() != elements)
      throw Error(code::kShape, format("x has %lld elements, expected a multiple of the network's %lld inputs, at least one row",
                                       static_cast<long long>(elements), static_cast<long long>(shape.inputs())));
  }
};

Napi::Value mlpForward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    ArrayCall call(info);
    const auto x = call.array("x");
    const MlpCall mlp(call.given(), call.length());
    const auto parameters = call.array("parameters", mlp.shape.parameterCount(), true);
    return call.submit([=](const EnginePointer& engine) {
      const auto kept = makeArray(engine, mlp.rows * mlp.shape.keptPerRow()), y = makeArray(engine, mlp.rows * mlp.shape.outputs());
      rlhf::mlpForward(*engine->engine, mlp.shape, mlp.rows, x->on(*engine), parameters->on(*engine), writable(kept), writable(y));
      return Outputs{{{"y", y}, {"kept", kept}}, {}, {}};
    });
  });
}

Napi::Value mlpBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    ArrayCall call(info);
    const auto x = call.array("x");
    const MlpCall mlp(call.given(), call.length());
    const auto parameters = call.array("parameters", mlp.shape.parameterCount(), true);
    const auto kept = call.array("kept", mlp.rows * mlp.shape.keptPerRow(), true);
    const auto dy = call.array("dy", mlp.rows * mlp.shape.outputs(), true);
    return call.submit([=](const EnginePointer& engine) {
      const auto gradient = makeArray(engine, mlp.shape.parameterCount());
      const auto work = makeArray(engine, mlp.rows * mlp.shape.workPerRow());
      rlhf::mlpBackward(*engine->engine, mlp.shape, mlp.rows, x->on(*engine), parameters->on(*engine), kept->on(*engine),
                        dy->on(*engine), writable(work), writable(gradient), nullptr);
      return Outputs{{{"gradient", gradient}}, {}, {}};
    });
  });
}

/// The inputs stay as they are: the outputs are what they become.
Napi::Value adamW(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    ArrayCall call(info);
    const auto parameters = call.array("parameters"), gradient = call.array("gradient");
    const auto m = call.array("m"), v = call.array("v");
    AdamW arguments;
    arguments.count = call.length();
    arguments.step = integer(call.given(), "step", 1);
    arguments.learningRate = number(call.given(), "learningRate", 0);
    arguments.beta1 = number(call.given(), "beta1", arguments.beta1);
    arguments.beta2 = number(call.given(), "beta2", arguments.beta2);
    arguments.eps = number(call.given(), "eps", arguments.eps);
    arguments.weightDecay = number(call.given(), "weightDecay", 0);
    arguments.gradientScale = number(call.given(), "gradientScale", 1);
    return call.submit([=](const EnginePointer& engine) mutable {
      const auto copyOf = [&](const std::shared_ptr<ArrayInput>& input) {
        const auto array = makeArray(engine, arguments.count);
        engine->engine->copy(writable(array), input->on(*engine), static_cast<size_t>(arguments.count) * sizeof(float));
        return array;
      };
      const auto newParameters = copyOf(parameters), newM = copyOf(m), newV = copyOf(v);
      arguments.gradient = gradient->on(*engine);
      arguments.parameter = writable(newParameters);
      arguments.m = writable(newM);
      arguments.v = writable(newV);
      engine->engine->run(engine->engine->ops().adamW, arguments);
      return Outputs{{{"parameters", newParameters}, {"m", newM}, {"v", newV}}, {}, {}};
    });
  });
}

}  // namespace

void defineMlp(Napi::Env env, Napi::Object exports) {
  exports.Set("mlpForward", Napi::Function::New<mlpForward>(env, "mlpForward"));
  exports.Set("mlpBackward", Napi::Function::New<mlpBackward>(env, "mlpBackward"));
  exports.Set("adamW", Napi::Function::New<adamW>(env, "adamW"));
}

}  // namespace rlhf::node
