#include <memory>
#include <string>
#include <vector>

#include "node/model.h"
#include "node/pass.h"
#include "node/settings.h"
#include "node/stat_names.h"

// Model.forwardBackward and Pass.lossBackward: the descriptions of their losses, and the calls.

namespace rlhf::node {
namespace {

/// An array of a loss: its name in JavaScript, where it goes, and how long it is.
struct LossArray {
  const char* name;
  const void* TokenLoss::* field;
  bool perSequence;
  bool required;
};

/// A loss as it was given: settings, and arrays whose memory is known once a command runs.
class GivenLosses {
 public:
  GivenLosses(const Napi::Object& token, Napi::Value value, int64_t rows, int64_t sequences) {
    readSettings(token, losses_.token);
    for (const LossArray& array : arraysOf(token)) {
      const int64_t length = array.perSequence ? sequences : rows;
      arrays_.push_back({array.field, ArrayInput(token.Get(array.name), array.name, length, array.required)});
    }
    if (value.IsUndefined()) return;
    const Napi::Object given = toObject(value, "value");
    losses_.value.emplace();
    losses_.value->clipRange = number(given, "clipRange", losses_.value->clipRange);
    losses_.value->scale = number(given, "scale", losses_.value->scale);
    for (const auto& [name, field] : {std::pair{"mask", &PpoValueLoss::mask}, std::pair{"oldValue", &PpoValueLoss::oldValue},
                                      std::pair{"returns", &PpoValueLoss::returns}})
      valueArrays_.push_back({field, ArrayInput(given.Get(name), name, rows, true)});
  }

  /// Call inside the command; the arrays live as long as this does.
  const PassLosses& on(EngineHandle& engine) {
    for (auto& [field, array] : arrays_) losses_.token.*field = array.on(engine);
    for (auto& [field, array] : valueArrays_) (*losses_.value).*field = array.on(engine);
    return losses_;
  }

  const std::vector<const char*>& statNames() const {
    switch (losses_.token.kind) {
      case TokenLossKind::Nll: return kTokenNllStats;
      case TokenLossKind::PpoPolicy: return kPpoPolicyStats;
      case TokenLossKind::GroupPolicy: break;
    }
    return kGroupPolicyStats;
  }
  bool hasValue() const { return losses_.value.has_value(); }

 private:
  /// A setting keeps its default where it is left out.
  static void readSettings(const Napi::Object& given, TokenLoss& loss) {
    const std::string kind = toText(field(given, "kind"), "kind");
    if (kind != "nll" && kind != "ppo" && kind != "group")
      throwArgument("the loss's kind must be \"nll\", \"ppo\" or \"group\", got \"" + kind + "\"");
    loss.kind = kind == "nll" ? TokenLossKind::Nll : kind == "ppo" ? TokenLossKind::PpoPolicy : TokenLossKind::GroupPolicy;
    loss.scale = number(given, "scale", loss.scale);
    if (loss.kind == TokenLossKind::PpoPolicy) {
      loss.clipRange = number(given, "clipRange", loss.clipRange);
      loss.dualClip = number(given, "dualClip", loss.dualClip);
      loss.entropyCoefficient = number(given, "entropyCoefficient", loss.entropyCoefficient);
    } else if (loss.kind == TokenLossKind::GroupPolicy) {
      loss.lowestRatio = number(given, "lowestRatio", loss.lowestRatio);
      loss.highestRatio = number(given, "highestRatio", loss.highestRatio);
      loss.klCoefficient = number(given, "klCoefficient", loss.klCoefficient);
      loss.weighKl = boolean(given, "weighKl", false);
      const std::string surrogate = text(given, "surrogate", "clipped");
      if (surrogate != "clipped" && surrogate != "truncated")
        throwArgument("surrogate must be \"clipped\" or \"truncated\", got \"" + surrogate + "\"");
      loss.surrogate = surrogate == "clipped" ? PolicySurrogate::Clipped : PolicySurrogate::Truncated;
    }
  }

  std::vector<LossArray> arraysOf(const Napi::Object& given) const {
    const TokenLoss& loss = losses_.token;
    if (loss.kind == TokenLossKind::Nll) return {{"weight", &TokenLoss::tokenWeight, false, true}};
    std::vector<LossArray> arrays = {{"mask", &TokenLoss::mask, false, true},
                                     {"oldLogProb", &TokenLoss::oldLogProb, false, true}};
    if (loss.kind == TokenLossKind::PpoPolicy) {
      arrays.push_back({"advantage", &TokenLoss::tokenAdvantage, false, true});
      return arrays;
    }
    const bool ofTokens = !given.Get("tokenAdvantage").IsUndefined();
    arrays.push_back({"tokenAdvantage", &TokenLoss::tokenAdvantage, false, false});
    arrays.push_back({"advantage", &TokenLoss::advantage, true, !ofTokens});
    arrays.push_back({"weight", &TokenLoss::sequenceWeight, true, true});
    arrays.push_back({"refLogProb", &TokenLoss::refLogProb, false, loss.klCoefficient != 0});
    return arrays;
  }

  PassLosses losses_;
  std::vector<std::pair<const void* TokenLoss::*, ArrayInput>> arrays_;
  std::vector<std::pair<const void* PpoValueLoss::*, ArrayInput>> valueArrays_;
};

Napi::Object toStats(Napi::Env env, const std::vector<const char*>& names, const std::vector<float>& sums) {
  Napi::Object stats = Napi::Object::New(env);
  for (size_t i = 0; i < sums.size(); ++i) stats.Set(names[i], sums[i]);
  return stats;
}

/// { stats, valueStats? }
Napi::Object toResult(Napi::Env env, const GivenLosses& losses, const LossSums& sums) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("stats", toStats(env, losses.statNames(), sums.token));
  if (losses.hasValue()) object.Set("valueStats", toStats(env, kPpoValueStats, sums.value));
  return object;
}

struct Result {
  std::shared_ptr<PassHandle> pass = std::make_shared<PassHandle>();
  LossSums sums;
};

}  // namespace

Napi::Value ModelWrap::forwardBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ModelHandle> model = handle();
    Batch batch = toBatch(toObject(info[0], "batch"));
    const ForwardOptions options = toForwardOptions(toObject(info[1], "options"));
    const auto losses = std::make_shared<GivenLosses>(toObject(info[2], "loss"), info[3], batch.rows(), batch.sequences());
    return model->engine->queue->submit(
        info.Env(),
        [model, batch = std::move(batch), options, losses] {
          Result result;
          result.pass->model = model;
          result.pass->pass = model->model->forwardBackward(batch, options, losses->on(*model->engine), result.sums);
          return result;
        },
        [losses](Napi::Env env, const Result& result) -> Napi::Value {
          Napi::Object object = toResult(env, *losses, result.sums);
          object.Set("pass", wrap(env, env.GetInstanceData<AddonData>()->pass, result.pass));
          return object;
        });
  });
}

Napi::Value PassWrap::lossBackward(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<PassHandle> pass = handle();
    requireNotConsumed(*pass);
    const auto losses =
        std::make_shared<GivenLosses>(toObject(info[0], "loss"), info[1], pass->pass->rows(), pass->pass->sequences());
    pass->consumed = true;
    return pass->model->engine->queue->submit(
        info.Env(),
        [pass, losses] {
          LossSums sums;
          pass->model->model->lossBackward(*pass->pass, losses->on(*pass->model->engine), sums);
          return sums;
        },
        [losses](Napi::Env env, const LossSums& sums) -> Napi::Value { return toResult(env, *losses, sums); });
  });
}

}  // namespace rlhf::node
