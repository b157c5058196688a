#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/engine.h"

namespace rlhf {

/// A flat block of parameters that train (or not) together: the base, one adapter, or one head. Parameters, gradients and
/// optimizer moments are laid out alike, so that an update is one op over one array.
class ParameterGroup;
class LossScale;

/// What can be asked about one parameter. Names and shapes are those of transformers' named_parameters(); adapters are
/// "<adapter>:<module path>.lora_A" / ".lora_B", heads "<head>:weight", "<head>:inner.weight", ….
struct ParameterInfo {
  std::string name;
  std::vector<int64_t> shape;
  std::string group;  // "base", "adapter:<name>" or "head:<name>"
  bool trainable = false;
};

/// A packed batch on the host: sequences one after another, without padding.
struct Batch {
  std::vector<int32_t> tokens;       // [N]
  std::vector<int32_t> offsets;      // [S+1], rising, offsets[0] = 0, offsets[S] = N
  std::vector<int32_t> parents;      // [S] or empty: the earlier sequence that this one continues, −1 for none (ops/parents.h)
  std::vector<int32_t> predictions;  // tokens whose statistics are wanted, rising, none the first of a sequence without a parent
  std::optional<std::vector<int32_t>> valueRows;  // rows whose values are wanted of a pass with a head, rising; none: of all

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

/// One linear layer that an adapter can name.
struct LinearLayerInfo {
  std::string module;       // full path, "model.layers.0.self_attn.q_proj"
  int64_t inputs = 0, outputs = 0;
  bool transposed = false;  // its weight is stored [inputs, outputs]
  bool attention = false;   // a projection of the attention; else of the MLP
};

class Pass;

struct ForwardOptions {
  std::string adapter;         // empty: the base alone
  std::string head;            // empty: no values
  double temperature = 1;
  bool grad = false;           // keep what backward needs
  bool keepLogits = true;      // the logits too, where they fit their budget
  bool statistics = true;      // false: skip the language-model head (reward models)
  /// With a seed the adapter's dropout is on. A row's mask depends on the seed, the layer and the row's tokens so far: the same
  /// seed gives the same masks, however sequences are batched.
  std::optional<uint64_t> dropoutSeed;
  /// Keep what the token statistics were made from, so that another pass can take this one as its reference.
  bool keepDistribution = false;
  /// A pass with keepDistribution, of the same batch, temperature and vocabulary: then this pass has the KL divergence to it. It
  /// may go once forward has returned; its model's weights must stay as they are until backward.
  const Pass* reference = nullptr;
  KlDirection klDirection = KlDirection::Reverse;
};

/// The result of a forward pass: arrays of N elements of the engine's accumulator type in device memory. With `grad` it also
/// holds the activations; it counts as live until it is destroyed or consumed by backward, which leaves the arrays readable.
class Pass {
 public:
  ~Pass();
  int64_t rows() const { return rows_; }
  int64_t sequences() const;
  const void* logProb() const { return logProb_; }  // null without `statistics`, like lse and entropy
  const void* lse() const { return lse_; }
  const void* entropy() const { return entropy_; }
  const void* value() const { return value_; }   // null without a head; undefined in rows that are not wanted
  const void* kl() const { return kl_; }         // null without a reference

 private:
  friend class Model;
  friend class Transformer;
  struct State;
  Pass();
  int64_t rows_ = 0;
  void* logProb_ = nullptr;
  void* lse_ = nullptr;
  void* entropy_ = nullptr;
  void* value_ = nullptr;
  void* kl_ = nullptr;
  std::unique_ptr<State> state_;
};

/// Upstream gradients, device arrays of N in the accumulator type; null means zero.
struct PassGradients {
  const void* dLogProb = nullptr;
  const void* dLse = nullptr;
  const void* dEntropy = nullptr;
  const void* dValue = nullptr;
  const void* dKl = nullptr;
};

/// What lossBackward minimises. Arrays are on the device; the batch's sequences, and what the passes compute, are filled in.
struct PassLosses {
  TokenLoss token;
  std::optional<PpoValueLoss> value;  // of the head's values: its mask, oldValue, returns, clipRange and scale
};

/// The losses' sums, in the order of their ops' Stat.
struct LossSums {
  std::vector<float> token, value;
};

class StopStrings;

struct GenerateOptions {
  int64_t maxNewTokens = 64, minNewTokens = 0;
  double temperature = 1, topP = 1, minP = 0, repetitionPenalty = 1;
  int64_t topK = 0;
  uint64_t seed = 0;
  int64_t firstStream = 0;              // sequence i draws from Philox stream firstStream + i
  std::vector<int32_t> stopTokens;      // a sequence ends after one of these; forbidden before minNewTokens
  std::shared_ptr<const StopStrings> stopStrings;  // or when its text ends with one of these, from minNewTokens on; may be null
  int64_t maxBatch = 64;                // sequences decoded at a time; those that stop make room for those that wait
  std::string adapter;
};

struct Generation {
  std::vector<int32_t> tokens;          // the stop token, or the one that completes a stop string, included
  bool stopped = false;                 // false: ended by maxNewTokens or the context length
};

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0;
  uint64_t seed = 0;  // of the rounding of weights that are kept in bfloat16 alone
};

/// A transformer with named adapters and heads on one base. Not thread-safe: lib's command queue calls it in order.
class Model : public std::enable_shared_from_this<Model> {
 public:
  struct Impl;
  /// Parameters are zero until written or initialised. `trainable` decides whether the base gets gradients. On an engine of F32 the
  /// matrices of a frozen base may be kept as F16 or BF16: half the memory; they are widened, which is exact, for arithmetic in float32.
  /// On one of a narrower type they are kept as F32, of which the passes read a rounded copy, or in that type alone. Those that train may
  /// be kept as BF16 alone: their updates are rounded stochastically.
  static std::shared_ptr<Model> create(std::shared_ptr<Engine> engine, const ModelConfig& config, bool trainable,
                                       std::optional<DType> storage = {});
  ~Model();

  const ModelConfig& config() const;
  Engine& engine();

  std::vector<ParameterInfo> parameters() const;
  /// Float32 in and out, `count` must equal the parameter's size. Unknown names are ERR_RLHF_UNKNOWN_NAME with the nearest known one.
  void writeParameter(const std::string& name, const float* values, int64_t count);
  /// The same, of values that come piece by piece: read(first, count, values).
  void writeParameter(const std::string& name, int64_t count,
                      const std::function<void(int64_t first, int64_t count, float* values)>& read);
  void readParameter(const std::string& name, float* values, int64_t count);
  void readGradient(const std::string& name, float* values, int64_t count);
  /// Device memory of a parameter and of its gradient (null when not trainable), for tests and checkpoints.
  void* parameterData(const std::string& name);
  void* gradientData(const std::string& name);
  /// Normal(0, std) for matrices, ones for norms, zeros for biases; GPT-2's residual projections scaled by 1/√(2·layers).
  void initialise(double std, uint64_t seed);

  void addAdapter(const std::string& name, const AdapterConfig& config);
  void addHead(const std::string& name, const HeadConfig& config);
  void removeAdapter(const std::string& name);
  void removeHead(const std::string& name);
  /// A new adapter `to` with the configuration and weights that `from` has now.
  void copyAdapter(const std::string& from, const std::string& to, bool trainable);
  /// W += scale·B·A for every adapted layer, all of them or, where that fails, none. The adapter is removed; with `reversible`
  /// it waits for unmergeAdapter, which brings it and the exact weights back, and needs a copy of the weights until then.
  void mergeAdapter(const std::string& name, bool reversible);
  void unmergeAdapter(const std::string& name);
  std::vector<LinearLayerInfo> linearLayers() const;

  std::unique_ptr<Pass> forward(const Batch& batch, const ForwardOptions& options);
  /// Adds the gradients to those of every trainable group that took part; consumes the pass.
  void backward(Pass& pass, const PassGradients& gradients);
  /// The losses and backward in one, for losses whose gradient at a token depends on that token alone: the head is gone through
  /// again, block of predictions by block, and of logits that the pass kept nothing is used. Consumes the pass. The gradients are
  /// those of the two in turn: bit for bit up to the head's own, and all of them where one block holds all predictions.
  void lossBackward(Pass& pass, const PassLosses& losses, LossSums& sums);
  /// forward and lossBackward in one, so that the head is gone through once. The pass that returns has no activations.
  std::unique_ptr<Pass> forwardBackward(const Batch& batch, const ForwardOptions& options, const PassLosses& losses, LossSums& sums);
  void zeroGradients(const std::string& group);

  /// Decodes prompts with a key/value cache. onToken(sequence, token) may be empty; a true `cancel` ends with ABORT_ERR.
  std::vector<Generation> generate(const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options,
                                   const std::function<void(int64_t, int32_t)>& onToken, const std::atomic<bool>& cancel);

  ParameterGroup& group(const std::string& name);
  /// Bytes that this model holds now; the optimizers and the engine's scratch memory are counted by Engine::ledger() alone.
  MemoryBytes memory() const;
  void setMaxLivePasses(int64_t count);  // default 4; one more live pass is ERR_RLHF_PASS_LIVE
  /// Logits of a pass with gradients are kept while they fit so many bytes (default 512 MiB) and recomputed otherwise. The blocks of
  /// forwardBackward are no larger either.
  void setLogitsBudget(size_t bytes);
  /// The most predictions of one pass whose logits are kept.
  int64_t mostKeptPredictions() const;
  /// From now on passes keep the input of each block alone, and backward computes the rest again: less memory for
  /// one more forward pass, the same bits.
  void setRecomputeLayers(bool recompute);
  /// Whether a frozen base is held packed for products backward too, once one is wanted: without it less memory and longer steps, the same bits.
  void setPacksBackward(bool packs);
  LossScale& lossScale();

 private:
  Model();
  std::unique_ptr<Impl> impl_;
};

/// AdamW over some of a model's groups with clipping by their global norm.
class Optimizer {
 public:
  Optimizer(std::shared_ptr<Model> model, std::vector<std::string> groups, const AdamWConfig& config);
  ~Optimizer();

  struct Result {
    double gradientNorm = 0;  // before clipping
    bool skipped = false;     // the norm was not finite: nothing was updated
    double lossScale = 1;     // that the gradients had
  };
  /// Scales gradients by `gradientScale`, clips to maxGradNorm (≤ 0: no clipping), updates, zeroes the gradients.
  Result step(double learningRate, double maxGradNorm, double gradientScale = 1);

  int64_t stepCount() const;
  /// The moments of one parameter as float32, and the step counter, for checkpoints.
  void exportMoments(const std::string& parameter, float* m, float* v, int64_t count);
  void importMoments(const std::string& parameter, const float* m, const float* v, int64_t count);
  void setStepCount(int64_t steps);
  /// The model's loss scale and the steps since it changed, for checkpoints; null where it is not scaled (loss_scale.h).
  std::optional<std::pair<double, int64_t>> lossScale() const;
  void setLossScale(double scale, int64_t steps);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rlhf
