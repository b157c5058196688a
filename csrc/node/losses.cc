#include "node/loss_call.h"

// The loss and advantage functions on per-token arrays.

namespace rlhf::node {
namespace {

Napi::Value whiten(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto x = call.array("x"), mask = call.array("mask");
    Whiten arguments;
    arguments.count = call.length();
    arguments.shiftMean = call.flag("shiftMean", true);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const auto y = makeArray(engine, arguments.count);
      arguments.x = x->on(*engine);
      arguments.mask = mask->on(*engine);
      arguments.y = writable(y);
      engine->engine->run(engine->engine->ops().whiten, arguments);
      return Outputs{{{"y", y}}, {}, {}};
    });
  });
}

Napi::Value klReward(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto logProb = call.array("logProb"), refLogProb = call.array("refLogProb"), mask = call.array("mask");
    const auto offsets = call.offsets();
    const auto score = call.array("score", static_cast<int64_t>(offsets->size()) - 1);
    KlReward arguments;
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    arguments.estimator = static_cast<KlEstimator>(call.count("estimator", 1));
    arguments.klCoefficient = call.value("klCoefficient", 0);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const DeviceIndices sequenceOffsets(*engine, *offsets);
      const auto reward = makeArray(engine, arguments.rows), kl = makeArray(engine, arguments.rows);
      arguments.offsets = sequenceOffsets.data();
      arguments.mask = mask->on(*engine);
      arguments.logProb = logProb->on(*engine);
      arguments.refLogProb = refLogProb->on(*engine);
      arguments.score = score->on(*engine);
      arguments.reward = writable(reward);
      arguments.kl = writable(kl);
      engine->engine->run(engine->engine->ops().klReward, arguments);
      return Outputs{{{"reward", reward}, {"kl", kl}}, {}, {}};
    });
  });
}

Napi::Value gae(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto reward = call.array("reward"), value = call.array("value"), mask = call.array("mask");
    const auto offsets = call.offsets();
    Gae arguments;
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    arguments.gamma = call.value("gamma", arguments.gamma);
    arguments.lambda = call.value("lambda", arguments.lambda);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      const DeviceIndices sequenceOffsets(*engine, *offsets);
      const auto advantage = makeArray(engine, arguments.rows), returns = makeArray(engine, arguments.rows);
      arguments.offsets = sequenceOffsets.data();
      arguments.mask = mask->on(*engine);
      arguments.reward = reward->on(*engine);
      arguments.value = value->on(*engine);
      arguments.advantage = writable(advantage);
      arguments.returns = writable(returns);
      engine->engine->run(engine->engine->ops().gae, arguments);
      return Outputs{{{"advantage", advantage}, {"returns", returns}}, {}, {}};
    });
  });
}

Napi::Value ppoPolicyLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    PpoPolicyLoss arguments;
    arguments.clipRange = call.value("clipRange", arguments.clipRange);
    arguments.dualClip = call.value("dualClip", 0);
    arguments.entropyCoefficient = call.value("entropyCoefficient", 0);
    arguments.scale = call.value("scale", 1);
    const auto logProb = call.array("logProb"), oldLogProb = call.array("oldLogProb"), mask = call.array("mask");
    const auto advantage = call.array("advantage");
    const auto entropy = call.array("entropy", arguments.entropyCoefficient != 0);
    arguments.rows = call.length();
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "approxKl", "clipped", "ratio", "ratioSquared", "entropy", "tokens", "dualClipped"});
      const auto dLogProb = makeArray(engine, arguments.rows);
      Outputs outputs{{{"dLogProb", dLogProb}}, {}, {}};
      arguments.mask = mask->on(*engine);
      arguments.logProb = logProb->on(*engine);
      arguments.oldLogProb = oldLogProb->on(*engine);
      arguments.advantage = advantage->on(*engine);
      arguments.entropy = entropy->on(*engine);
      arguments.dLogProb = writable(dLogProb);
      arguments.stats = stats.data();
      if (arguments.entropyCoefficient != 0) {
        outputs.arrays.emplace_back("dEntropy", makeArray(engine, arguments.rows));
        arguments.dEntropy = writable(outputs.arrays.back().second);
      }
      engine->engine->run(engine->engine->ops().ppoPolicyLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
  });
}

Napi::Value groupPolicyLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    GroupPolicyLoss arguments;
    arguments.level = static_cast<RatioLevel>(call.count("level", 0));
    arguments.surrogate = static_cast<PolicySurrogate>(call.count("surrogate", 0));
    arguments.lowestRatio = call.value("lowestRatio", arguments.lowestRatio);
    arguments.highestRatio = call.value("highestRatio", arguments.highestRatio);
    arguments.klCoefficient = call.value("klCoefficient", 0);
    const auto logProb = call.array("logProb"), oldLogProb = call.array("oldLogProb"), mask = call.array("mask");
    const auto refLogProb = call.array("refLogProb", arguments.klCoefficient != 0);
    const auto offsets = call.offsets();
    arguments.rows = call.length();
    arguments.sequences = static_cast<int64_t>(offsets->size()) - 1;
    const auto weight = call.array("weight", arguments.sequences), advantage = call.array("advantage", arguments.sequences);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "approxKl", "clippedLow", "clippedHigh", "ratio", "ratioSquared", "kl", "tokens"});
      const DeviceIndices sequenceOffsets(*engine, *offsets);
      const auto dLogProb = makeArray(engine, arguments.rows);
      Outputs outputs{{{"dLogProb", dLogProb}}, {}, {}};
      arguments.offsets = sequenceOffsets.data();
      arguments.mask = mask->on(*engine);
      arguments.weight = weight->on(*engine);
      arguments.advantage = advantage->on(*engine);
      arguments.logProb = logProb->on(*engine);
      arguments.oldLogProb = oldLogProb->on(*engine);
      arguments.refLogProb = refLogProb->on(*engine);
      arguments.dLogProb = writable(dLogProb);
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().groupPolicyLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
  });
}

Napi::Value ppoValueLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    PpoValueLoss arguments;
    arguments.clipRange = call.value("clipRange", arguments.clipRange);
    arguments.scale = call.value("scale", 1);
    const auto value = call.array("value"), oldValue = call.array("oldValue"), returns = call.array("returns");
    const auto mask = call.array("mask");
    arguments.rows = call.length();
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "clipped", "value", "return", "returnSquared", "errorSquared", "tokens"});
      const auto dValue = makeArray(engine, arguments.rows);
      Outputs outputs{{{"dValue", dValue}}, {}, {}};
      arguments.mask = mask->on(*engine);
      arguments.value = value->on(*engine);
      arguments.oldValue = oldValue->on(*engine);
      arguments.returns = returns->on(*engine);
      arguments.dValue = writable(dValue);
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().ppoValueLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
  });
}

Napi::Value tokenNllLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto logProb = call.array("logProb"), weight = call.array("weight");
    TokenNllLoss arguments;
    arguments.rows = call.length();
    arguments.scale = call.value("scale", 1);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "weight"});
      const auto dLogProb = makeArray(engine, arguments.rows);
      Outputs outputs{{{"dLogProb", dLogProb}}, {}, {}};
      arguments.logProb = logProb->on(*engine);
      arguments.weight = weight->on(*engine);
      arguments.dLogProb = writable(dLogProb);
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().tokenNllLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
  });
}

Napi::Value rewardLoss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Call call(info);
    const auto value = call.array("value");
    const auto chosen = call.indices("chosen"), rejected = call.indices("rejected"), scored = call.indices("scored");
    RewardLoss arguments;
    arguments.rows = call.length();
    arguments.pairs = static_cast<int64_t>(chosen->size());
    arguments.answers = static_cast<int64_t>(scored->size());
    if (rejected->size() != chosen->size())
      throw Error(code::kShape, format("rewardLoss: %zu chosen rows and %zu rejected rows, expected as many of both",
                                       chosen->size(), rejected->size()));
    const auto margin = call.array("margin", arguments.pairs, false), label = call.array("label", arguments.pairs, false);
    const auto score = call.array("score", arguments.answers, arguments.answers > 0);
    arguments.pairLoss = static_cast<PairLoss>(call.count("pairLoss", 1));
    arguments.centering = call.value("centering", 0);
    arguments.scoreWeight = call.value("scoreWeight", 1);
    arguments.scale = call.value("scale", 1);
    return call.submit(info, [=](const EnginePointer& engine) mutable {
      Stats stats(*engine, {"loss", "pairs", "decided", "correct", "margin", "reward", "rewards", "answers", "squaredError"});
      const DeviceIndices chosenRows(*engine, *chosen), rejectedRows(*engine, *rejected), scoredRows(*engine, *scored);
      const auto dValue = makeArray(engine, arguments.rows);
      Outputs outputs{{{"dValue", dValue}}, {}, {}};
      arguments.value = value->on(*engine);
      arguments.chosen = chosenRows.data();
      arguments.rejected = rejectedRows.data();
      arguments.margin = margin->on(*engine);
      arguments.label = label->on(*engine);
      arguments.scored = scoredRows.data();
      arguments.score = score->on(*engine);
      arguments.dValue = writable(dValue);
      arguments.stats = stats.data();
      engine->engine->run(engine->engine->ops().rewardLoss, arguments);
      stats.readInto(outputs);
      return outputs;
    });
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
