#include "node/op_call.h"

// The functions of whole answers: sums over sequences, losses of pairs, KTO.

namespace rlhf::node {
namespace {

Napi::Value sequenceSum(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<SequenceSum> call(info, &Ops::sequenceSum);
    call.inputs({"x", "weight"});
    call.arguments.rows = call.length();
    call.offsets();
    call.output("sum", call.arguments.sequences);
    return call.submit();
  });
}

Napi::Value sequenceSumBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<SequenceSumBackward> call(info, &Ops::sequenceSumBackward);
    call.input("weight");
    call.input("base", false);
    call.arguments.rows = call.length();
    call.offsets();
    call.input("dSum", call.arguments.sequences, true);
    call.output("dx", call.length());
    return call.submit();
  });
}

Napi::Value wpoWeight(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<WpoWeight> call(info, &Ops::wpoWeight);
    call.inputs({"logProb", "lse", "lseHalf", "mask"});
    call.arguments.rows = call.length();
    call.offsets();
    call.arguments.pairs = call.indices("chosen");
    call.indices("rejected", call.arguments.pairs);
    call.output("weight", call.arguments.pairs);
    return call.submit();
  });
}

Napi::Value preferenceLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<PreferenceLoss> call(info, &Ops::preferenceLoss);
    call.input("logProb");
    call.input("refLogProb", false);
    call.input("base", false);
    call.arguments.sequences = call.length();
    call.arguments.pairs = call.indices("chosen");
    call.indices("rejected", call.arguments.pairs);
    call.optionalIndices("tokens", call.length());
    call.input("pairWeight", call.arguments.pairs, false);
    call.output("dLogProb", call.length());
    call.workspace("order", 2 * call.arguments.pairs + 1);
    call.stats({"loss", "pairs", "correct", "margin", "chosenReward", "rejectedReward", "chosenLogProb", "rejectedLogProb"});
    return call.submit();
  });
}

Napi::Value ktoLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    OpCall<KtoLoss> call(info, &Ops::ktoLoss);
    call.inputs({"logProb", "refLogProb"});
    call.arguments.sequences = call.length();
    call.indices("label", call.length());
    call.output("dLogProb", call.length());
    call.stats({"loss", "desirable", "undesirable", "chosenReward", "rejectedReward", "chosenLogProb", "rejectedLogProb"});
    return call.submit();
  });
}

}  // namespace

void definePreferenceLosses(Napi::Env env, Napi::Object exports) {
  exports.Set("sequenceSum", Napi::Function::New<sequenceSum>(env, "sequenceSum"));
  exports.Set("sequenceSumBackward", Napi::Function::New<sequenceSumBackward>(env, "sequenceSumBackward"));
  exports.Set("wpoWeight", Napi::Function::New<wpoWeight>(env, "wpoWeight"));
  exports.Set("preferenceLoss", Napi::Function::New<preferenceLoss>(env, "preferenceLoss"));
  exports.Set("ktoLoss", Napi::Function::New<ktoLoss>(env, "ktoLoss"));
}

}  // namespace rlhf::node
