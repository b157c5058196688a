#include "node/op_call.h"
#include "node/stat_names.h"

// The loss and advantage functions on per-token arrays.

namespace rlhf::node {
namespace {

Napi::Value whiten(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<Whiten> call(info, &Ops::whiten);
    call.inputs({"x", "mask"});
    call.arguments.count = call.length();
    call.output("y", call.length());
    return call.submit();
  });
}

Napi::Value klReward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<KlReward> call(info, &Ops::klReward);
    call.inputs({"logProb", "refLogProb", "mask"});
    call.arguments.rows = call.length();
    call.offsets();
    call.input("score", call.arguments.sequences, true);
    call.output("reward", call.length());
    call.output("kl", call.length());
    return call.submit();
  });
}

Napi::Value gae(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<Gae> call(info, &Ops::gae);
    call.inputs({"reward", "value", "mask"});
    call.arguments.rows = call.length();
    call.offsets();
    call.output("advantage", call.length());
    call.output("returns", call.length());
    return call.submit();
  });
}

Napi::Value ppoPolicyLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<PpoPolicyLoss> call(info, &Ops::ppoPolicyLoss);
    const bool entropy = call.arguments.entropyCoefficient != 0;
    call.inputs({"logProb", "oldLogProb", "mask", "advantage"});
    call.input("entropy", entropy);
    call.arguments.rows = call.length();
    call.output("dLogProb", call.length());
    if (entropy) call.output("dEntropy", call.length());
    call.stats(kPpoPolicyStats);
    return call.submit();
  });
}

Napi::Value groupPolicyLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<GroupPolicyLoss> call(info, &Ops::groupPolicyLoss);
    call.inputs({"logProb", "oldLogProb", "mask"});
    call.input("refLogProb", call.arguments.klCoefficient != 0);
    call.arguments.rows = call.length();
    call.offsets();
    call.input("weight", call.arguments.sequences, true);
    call.input("tokenAdvantage", false);
    call.input("advantage", call.arguments.sequences, false);
    call.output("dLogProb", call.length());
    call.stats(kGroupPolicyStats);
    return call.submit();
  });
}

Napi::Value ppoValueLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<PpoValueLoss> call(info, &Ops::ppoValueLoss);
    call.inputs({"value", "oldValue", "returns", "mask"});
    call.arguments.rows = call.length();
    call.output("dValue", call.length());
    call.stats(kPpoValueStats);
    return call.submit();
  });
}

Napi::Value tokenNllLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<TokenNllLoss> call(info, &Ops::tokenNllLoss);
    call.inputs({"logProb", "weight"});
    call.arguments.rows = call.length();
    call.output("dLogProb", call.length());
    call.stats(kTokenNllStats);
    return call.submit();
  });
}

Napi::Value rewardLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<RewardLoss> call(info, &Ops::rewardLoss);
    RewardLoss& arguments = call.arguments;
    call.input("value");
    arguments.rows = call.length();
    arguments.pairs = call.indices("chosen");
    call.indices("rejected", arguments.pairs);
    arguments.answers = call.indices("scored");
    call.input("margin", arguments.pairs, false);
    call.input("label", arguments.pairs, false);
    call.input("score", arguments.answers, arguments.answers > 0);
    call.output("dValue", call.length());
    call.stats({"loss", "pairs", "decided", "correct", "margin", "reward", "rewards", "answers", "squaredError"});
    return call.submit();
  });
}

}  // namespace

void defineLosses(Napi::Env env, Napi::Object exports) {
  exports.Set("whiten", Napi::Function::New<whiten>(env, "whiten"));
  exports.Set("klReward", Napi::Function::New<klReward>(env, "klReward"));
  exports.Set("gae", Napi::Function::New<gae>(env, "gae"));
  exports.Set("ppoPolicyLoss", Napi::Function::New<ppoPolicyLoss>(env, "ppoPolicyLoss"));
  exports.Set("groupPolicyLoss", Napi::Function::New<groupPolicyLoss>(env, "groupPolicyLoss"));
  exports.Set("ppoValueLoss", Napi::Function::New<ppoValueLoss>(env, "ppoValueLoss"));
  exports.Set("tokenNllLoss", Napi::Function::New<tokenNllLoss>(env, "tokenNllLoss"));
  exports.Set("rewardLoss", Napi::Function::New<rewardLoss>(env, "rewardLoss"));
}

}  // namespace rlhf::node
