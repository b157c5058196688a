#pragma once
#include <vector>

#include "model/adapter.h"
#include "model/buffers.h"
#include "model/packed_weights.h"

namespace rlhf {

/// Keys and values of the sequences being decoded: two arrays of pages per block (ops/decode.h).
struct KeyValueCache {
  DType type = DType::F32;
  int64_t pages = 0;
  std::vector<void*> keys, values;
};

/// How a pass without gradients uses a cache. Prefill: attention runs inside the packed batch and its keys
/// and values are stored. Decode: every row is one sequence's newest token and attends to what is stored.
struct CacheUse {
  const KeyValueCache& cache;
  const int32_t* places;             // [rows]: where each row's key and value go
  const int32_t* tables = nullptr;   // [rows, tableStride] (decode): the pages of each sequence
  int64_t tableStride = 0;
  const int32_t* lengths = nullptr;  // [rows] (decode), the newest token included
};

/// The other side of a divergence, on the policy's rows.
struct Reference {
  KlDirection direction;
  const void* hidden;  // [N, cols] after the final norm
  int64_t cols;
  const void* lse;     // [N]
  LinearWeight head;
};

/// The frozen or trainable base: parameters, forward pass and backward pass, written out over the engine's
/// ops.
class Transformer {
 public:
  /// `storage` is the type in which the matrices of a frozen base are kept; arithmetic has the engine's.
  Transformer(Engine& engine, const ModelConfig& config, bool trainable, DType storage);

  const Architecture& architecture() const { return architecture_; }
  ParameterGroup& base() { return base_; }
  const ParameterGroup& base() const { return base_; }
  size_t packedBytes() const { return packed_.bytes(); }
  size_t tableBytes() const { return rotaryTables_.bytes(); }

  /// The first place, block · kStages + stage, that has anything trainable: −1 is the embedding,
  /// blocks · kStages nowhere.
  int lowestTrainable(const Adapter* adapter) const;

  void setPacksBackward(bool packs) { packed_.setBackwardForms(packs); }
  /// Packs what forward passes and their logits read, where it is not.
  void prepareForward() {
    packed_.prepareLinears(PackedWeights::kForward);
    packed_.prepareHead(PackedWeights::kForward);
  }
  /// tokens, positions and offsets → hidden [N, C], the final normed hidden states. Where rows are left out, readHidden too.
  void forward(const ForwardBuffers& buffers, const RowSet& rows, const Adapter* adapter,
               const CacheUse* cache);
  /// Per-token statistics of `count` predictions; the outputs are zero elsewhere.
  void tokenStatistics(const ForwardBuffers& buffers, const RowSet& rows, int64_t count, double temperature,
                       void* logProb, void* lse, void* entropy);
  /// kl of `count` predictions to a reference on the same batch; zero elsewhere.
  void klDivergence(const ForwardBuffers& buffers, const RowSet& rows, int64_t count, double temperature,
                    const void* lse, const Reference& reference, void* kl);
  /// The head with the forms that forward products want: for divergences to this model.
  LinearWeight preparedHead();
  /// logits [rows, V], of the accumulator type, of hidden [rows, C].
  void logits(int64_t rows, const void* hidden, void* out);

  /// Upstream gradients of the statistics → work.dNormed += gradient of the hidden states, and the head's own
  /// gradient.
  void tokenStatisticsBackward(const ForwardBuffers& buffers, const BackwardBuffers& work, const RowSet& rows,
                               int64_t count, double temperature, const void* lse, const void* entropy,
                               const PassGradients& upstream);
  /// tokenStatistics, a loss and tokenStatisticsBackward in one, of `a.count` predictions. `a` brings the loss, the outputs, which are
  /// zero where nothing is predicted, and the blocks; the gradient of the hidden states is added to dHidden, where null means none.
  void tokenLoss(const ForwardBuffers& buffers, TokenLossForwardBackward a, void* dHidden);
  /// Adds to the same gradients. The logits that the pass kept are read, so it goes before tokenStatisticsBackward, which uses
  /// them up.
  void klDivergenceBackward(const ForwardBuffers& buffers, const BackwardBuffers& work, const RowSet& rows,
                            int64_t count, double temperature, const void* lse, const Reference& reference,
                            const void* kl, const void* dKl);
  /// to[n] = from[rows[n]], `count` rows of `width` elements of a type; `from` has `available`. An embedding's lookup takes rows of
  /// any table.
  void takeRows(DType type, int64_t width, const int32_t* rows, int64_t count, const void* from, int64_t available, void* to);
  /// work.dNormed, the gradient of the hidden states → gradients of base and adapter, down to `lowest` and no
  /// further. `recompute`: of the blocks' arrays there is their input alone.
  void backward(const ForwardBuffers& buffers, const BackwardBuffers& work, const RowSet& rows,
                Adapter* adapter, int lowest, bool recompute);

 private:
  /// The arguments that a divergence and its gradients have in common. The logits are computed again where they were not kept.
  template <class Arguments>
  Arguments divergenceArguments(const ForwardBuffers& buffers, const RowSet& rows, int64_t count, double temperature,
                                const void* lse, const Reference& reference);

  /// What every step of a backward pass needs.
  struct BackwardStep {
    const ForwardBuffers& buffers;
    const BackwardBuffers& work;
    const RowSet& rows;
    Adapter* adapter;
    int lowest;
    void* dOutput;  // gradient of the residual stream above a block, and below it: one array that both
    void* dInput;   // branches add to, or two where they are parallel
  };

  void makeRotaryTables();
  void embed(const ForwardBuffers& buffers, const RowSet& rows);
  /// One block from its input to `output`; null: all but its last layer, for the backward pass.
  void forwardBlock(const ForwardBuffers& buffers, const RowSet& rows, size_t block, const Adapter* adapter,
                    const CacheUse* cache, void* output);
  /// Its parts: from the input to the attention's output, and from there to its end.
  void forwardAttention(const ForwardBuffers& buffers, const RowSet& rows, size_t block, const Adapter* adapter,
                        const CacheUse* cache);
  void finishBlock(const ForwardBuffers& buffers, const RowSet& rows, size_t block, const Adapter* adapter, void* output);
  /// The last block from its attention's output on, and the final norm, of the rows that are read.
  void finishReadRows(const ForwardBuffers& buffers, const RowSet& rows, const Adapter* adapter);
  /// [read, width] of [N, width], and back, with 0 in the rows that are left out and in the row after those that are read.
  void takeRead(const ForwardBuffers& buffers, const RowSet& rows, int64_t width, const void* all, void* read);
  void putBack(const ForwardBuffers& buffers, const RowSet& rows, int64_t width, void* read, void* all);
  void norm(const NormLayer& layer, int64_t rows, const void* x, void* y, void* mean, void* rstd);
  void headNorms(const BlockBuffers& buffers, const Block& block, int64_t rows);
  void rotate(const ForwardBuffers& buffers, int64_t rows, void* qkv, bool inverse);
  void attend(const ForwardBuffers& buffers, const RowSet& rows, size_t block, const CacheUse* cache);
  void normMlpInput(const BlockBuffers& buffers, const Block& block, int64_t rows);
  void mlp(const ForwardBuffers& buffers, const RowSet& rows, size_t block, const Adapter* adapter,
           void* output);
  void activateGated(const BlockBuffers& block, int64_t rows, void* activated);
  /// y = x·Wᵀ + … for all layers of a stage, side by side.
  void project(const ForwardBuffers& buffers, const RowSet& rows, size_t block, Stage stage, const Adapter* adapter,
               LinearForward shared);
  /// y (+)= x after the dropout of one adapted layer, both [N, inputs].
  void dropOut(const ForwardBuffers& buffers, const RowSet& rows, const Adapter& adapter, const LinearLayer& layer,
               const void* x, void* y, bool accumulate);

  void normBackward(const NormLayer& layer, int64_t rows, const void* x, const void* mean, const void* rstd,
                    const void* dy, void* dx, bool accumulate);
  void headNormsBackward(const BlockBuffers& buffers, const Block& block, int64_t rows, void* dQkv);
  enum class Gradients { All, OfInput, OfParameters };
  /// dy of all layers of a stage → dx and the layers' own gradients, or one of the two first and the other later. x is not read for dx.
  void projectBackward(const BackwardStep& step, size_t block, Stage stage, const void* x, const void* dy,
                       void* dx, Gradients gradients = Gradients::All);
  /// All return false where nothing below is trainable. The first is for the last block where rows are left out, with the final norm.
  bool readRowsBackward(const BackwardStep& step);
  bool mlpBackward(const BackwardStep& step, size_t block);
  /// Whether gradients of a stage's layers are wanted, and with them the layers' input.
  bool wantsInput(const BackwardStep& step, size_t block, Stage stage) const;
  void activateAgain(const BlockBuffers& block, int64_t rows, void* activated);
  /// dActivated → the gradient of what the activation was applied to, which is returned; with `activated` that is made again too.
  void* activationBackward(const BlockBuffers& block, int64_t rows, void* dActivated, void* activated);
  bool attentionOutBackward(const BackwardStep& step, size_t block);
  bool attentionBackward(const BackwardStep& step, size_t block);

  char* at(void* base, int64_t element) const {
    return static_cast<char*>(base) + static_cast<size_t>(element) * dtypeSize(engine_.type());
  }
  const char* at(const void* base, int64_t element) const { return at(const_cast<void*>(base), element); }

  Engine& engine_;
  ParameterGroup base_;
  Architecture architecture_;
  PackedWeights packed_;
  DeviceMemory rotaryTables_;
  void* cosine_ = nullptr;  // [maxPositions, rotary/2], times the configuration's rotaryScale
  void* sine_ = nullptr;
};

}  // namespace rlhf
