#include "node/loss_call.h"

// The functions of whole answers: sums over sequences, losses of pairs, KTO.

namespace rlhf::node {
namespace {

using Indices = std::shared_ptr<std::vector<int32_t>>;

void requireLength(const char* op, const char* field, const Indices& values, int64_t length) {
  if (static_cast<int64_t>(values->size()) != length)
    throw Error(code::kShape, format("%s: %s has %zu elements, expected %lld", op, field, values->size(),
                                     static_cast<long long>(length)));
}

/// Indices that may be left out.
Indices optionalIndices(Call& call, const char* name) {
  return call.has(name) ? call.indices(name) : std::make_shared<std::vector<int32_t>>();
}

Napi::Value sequenceSum(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto x = call.array("x"), weight = call.array("weight");
    const auto offsets = call.offsets();
    SequenceSum arguments;
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const DeviceIndices sequenceOffsets(*engine, *offsets);
      const auto sum = makeArray(engine, arguments.sequences);
      arguments.offsets = sequenceOffsets.data();
      arguments.weight = weight->on(*engine);
      arguments.x = x->on(*engine);
      arguments.sum = writable(sum);
      engine->engine->run(engine->engine->ops().sequenceSum, arguments);
      return Outputs{{{"sum", sum}}, {}, {}};
    });
  });
}

Napi::Value sequenceSumBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto weight = call.array("weight"), base = call.array("base", false);
    const auto offsets = call.offsets();
    SequenceSumBackward arguments;
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    const auto dSum = call.array("dSum", arguments.sequences);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const DeviceIndices sequenceOffsets(*engine, *offsets);
      const auto dx = makeArray(engine, arguments.rows);
      arguments.offsets = sequenceOffsets.data();
      arguments.weight = weight->on(*engine);
      arguments.dSum = dSum->on(*engine);
      arguments.base = base->on(*engine);
      arguments.dx = writable(dx);
      engine->engine->run(engine->engine->ops().sequenceSumBackward, arguments);
      return Outputs{{{"dx", dx}}, {}, {}};
    });
  });
}

Napi::Value wpoWeight(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto logProb = call.array("logProb"), lse = call.array("lse"), lseHalf = call.array("lseHalf");
    const auto mask = call.array("mask");
    const auto offsets = call.offsets();
    const auto chosen = call.indices("chosen"), rejected = call.indices("rejected");
    WpoWeight arguments;
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    arguments.pairs = static_cast<int64_t>(chosen->size());
    requireLength("wpoWeight", "rejected", rejected, arguments.pairs);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const DeviceIndices sequenceOffsets(*engine, *offsets), chosenRows(*engine, *chosen),
          rejectedRows(*engine, *rejected);
      const auto weight = makeArray(engine, arguments.pairs);
      arguments.offsets = sequenceOffsets.data();
      arguments.chosen = chosenRows.data();
      arguments.rejected = rejectedRows.data();
      arguments.mask = mask->on(*engine);
      arguments.logProb = logProb->on(*engine);
      arguments.lse = lse->on(*engine);
      arguments.lseHalf = lseHalf->on(*engine);
      arguments.weight = writable(weight);
      engine->engine->run(engine->engine->ops().wpoWeight, arguments);
      return Outputs{{{"weight", weight}}, {}, {}};
    });
  });
}

PreferenceLoss preferenceSettings(Call& call) {
  PreferenceLoss arguments;
  arguments.kind = static_cast<PreferenceKind>(call.count("kind", 0));
  arguments.fDivergence = static_cast<FDivergence>(call.count("fDivergence", 0));
  arguments.lengthNormalized = call.flag("lengthNormalized", false);
  arguments.statsPerToken = call.flag("statsPerToken", false);
  arguments.beta = call.value("beta", arguments.beta);
  arguments.labelSmoothing = call.value("labelSmoothing", arguments.labelSmoothing);
  arguments.margin = call.value("margin", arguments.margin);
  arguments.fAlpha = call.value("fAlpha", arguments.fAlpha);
  arguments.discopopTau = call.value("discopopTau", arguments.discopopTau);
  arguments.scale = call.value("scale", 1);
  return arguments;
}

Napi::Value preferenceLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    PreferenceLoss arguments = preferenceSettings(call);
    const auto logProb = call.array("logProb"), refLogProb = call.array("refLogProb", false);
    const auto base = call.array("base", false);
    const Indices chosen = call.indices("chosen"), rejected = call.indices("rejected");
    const Indices tokens = optionalIndices(call, "tokens");
    arguments.sequences = call.length();
    arguments.pairs = static_cast<int64_t>(chosen->size());
    requireLength("preferenceLoss", "rejected", rejected, arguments.pairs);
    if (!tokens->empty()) requireLength("preferenceLoss", "tokens", tokens, arguments.sequences);
    const auto pairWeight = call.array("pairWeight", arguments.pairs, false);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "pairs", "correct", "margin", "chosenReward", "rejectedReward", "chosenLogProb",
                            "rejectedLogProb"});
      const DeviceIndices chosenRows(*engine, *chosen), rejectedRows(*engine, *rejected), lengths(*engine, *tokens);
      const DeviceMemory order(*engine->engine, MemoryUse::Arrays, (2 * chosen->size() + 1) * sizeof(int32_t), "order of pairs");
      const auto dLogProb = makeArray(engine, arguments.sequences);
      Outputs outputs{{{"dLogProb", dLogProb}}, {}, {}};
      arguments.chosen = chosenRows.data();
      arguments.rejected = rejectedRows.data();
      arguments.tokens = lengths.data();
      arguments.logProb = logProb->on(*engine);
      arguments.refLogProb = refLogProb->on(*engine);
      arguments.pairWeight = pairWeight->on(*engine);
      arguments.base = base->on(*engine);
      arguments.dLogProb = writable(dLogProb);
      arguments.order = reinterpret_cast<int32_t*>(order.data());
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().preferenceLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
  });
}

Napi::Value ktoLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    KtoLoss arguments;
    arguments.beta = call.value("beta", arguments.beta);
    arguments.kl = call.value("kl", arguments.kl);
    arguments.desirableWeight = call.value("desirableWeight", 1);
    arguments.undesirableWeight = call.value("undesirableWeight", 1);
    arguments.scale = call.value("scale", 1);
    const auto logProb = call.array("logProb"), refLogProb = call.array("refLogProb");
    const Indices label = call.indices("label");
    arguments.sequences = call.length();
    requireLength("ktoLoss", "label", label, arguments.sequences);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "desirable", "undesirable", "chosenReward", "rejectedReward", "chosenLogProb",
                            "rejectedLogProb"});
      const DeviceIndices labels(*engine, *label);
      const auto dLogProb = makeArray(engine, arguments.sequences);
      Outputs outputs{{{"dLogProb", dLogProb}}, {}, {}};
      arguments.label = labels.data();
      arguments.logProb = logProb->on(*engine);
      arguments.refLogProb = refLogProb->on(*engine);
      arguments.dLogProb = writable(dLogProb);
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().ktoLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
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
