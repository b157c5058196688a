#include "node/pass.h"

namespace rlhf::node {

void requireNotConsumed(const PassHandle& pass) {
  if (pass.consumed)
    throw Error(code::kPassConsumed, "backward() has consumed this pass; run forward() again for another gradient");
}

namespace {

const void* output(const Pass& pass, const std::string& which) {
  if (which == "logProb") return pass.logProb();
  if (which == "lse") return pass.lse();
  if (which == "entropy") return pass.entropy();
  if (which == "value") return pass.value();
  if (which == "kl") return pass.kl();
  throwArgument("a pass has logProb, lse, entropy, value and kl, not \"" + which + "\"");
}

const char* whyAbsent(const std::string& which) {
  if (which == "value") return "this pass has no values: name a head in forward's options";
  if (which == "kl") return "this pass has no divergence: name a reference pass in forward's options";
  return "this pass has no token statistics: it ran with statistics: false";
}

}  // namespace

PassWrap::PassWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  std::shared_ptr<PassHandle> pass = handleFrom<PassHandle>(info, kName);
  std::shared_ptr<CommandQueue> queue = pass->model->engine->queue;
  set(std::move(pass), std::move(queue));
}

Napi::Value PassWrap::rows(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), static_cast<double>(handle()->pass->rows()));
  });
}

Napi::Value PassWrap::array(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<PassHandle> pass = handle();
    requireNotConsumed(*pass);
    const std::string which = toText(info[0], "which");
    auto array = std::make_shared<ArrayHandle>();
    array->data = output(*pass->pass, which);
    if (!array->data) throw Error(code::kArgument, whyAbsent(which));
    array->engine = pass->model->engine;
    array->pass = pass;
    array->length = pass->pass->rows();
    return wrap(info.Env(), info.Env().GetInstanceData<AddonData>()->array, array);
  });
}

Napi::Value PassWrap::backward(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<PassHandle> pass = handle();
    requireNotConsumed(*pass);
    const Napi::Object gradients = toObject(info[0], "gradients");
    const int64_t rows = pass->pass->rows();
    struct Inputs {
      ArrayInput logProb, lse, entropy, value, kl;
    };
    const auto input = [&](const char* name) { return ArrayInput(gradients.Get(name), name, rows, false); };
    const auto inputs = std::make_shared<Inputs>(Inputs{input("dLogProb"), input("dLse"), input("dEntropy"), input("dValue"), input("dKl")});
    pass->consumed = true;
    const std::shared_ptr<EngineHandle> engine = pass->model->engine;
    return engine->queue->submit(
        info.Env(),
        [pass, inputs, engine] {
          PassGradients upstream;
          upstream.dLogProb = inputs->logProb.on(*engine);
          upstream.dLse = inputs->lse.on(*engine);
          upstream.dEntropy = inputs->entropy.on(*engine);
          upstream.dValue = inputs->value.on(*engine);
          upstream.dKl = inputs->kl.on(*engine);
          pass->model->model->backward(*pass->pass, upstream);
          engine->engine->synchronize();
          return true;
        },
        [](Napi::Env env, bool) -> Napi::Value { return env.Undefined(); });
  });
}

void definePass(Napi::Env env, Napi::Object exports, AddonData& data) {
  using W = PassWrap;
  const Napi::Function constructor =
      W::DefineClass(env, W::kName,
                     {W::InstanceAccessor<&W::rows>("rows"), W::InstanceMethod<&W::array>("array"),
                      W::InstanceMethod<&W::backward>("backward"), W::InstanceMethod<&W::lossBackward>("lossBackward"),
                      W::InstanceMethod("dispose", &W::dispose)});
  data.pass = Napi::Persistent(constructor);
  exports.Set(W::kName, constructor);
}

}  // namespace rlhf::node
