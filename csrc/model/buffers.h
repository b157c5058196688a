#pragma once
#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "model/architecture.h"

namespace rlhf {

struct Adapter;
struct Head;

/// Names the arrays of one memory block. Run once without memory it counts bytes; run again over the block it
/// gives the pointers.
class BufferLayout {
 public:
  explicit BufferLayout(char* base = nullptr) : base_(base) {}
  void* reserve(int64_t elements, size_t elementSize) {
    const size_t offset = plan_.reserve(static_cast<size_t>(elements) * elementSize);
    return base_ ? base_ + offset : nullptr;
  }
  template <class Element>
  Element* array(int64_t elements) {
    return static_cast<Element*>(reserve(elements, sizeof(Element)));
  }
  size_t mark() const { return plan_.mark(); }
  void release(size_t mark) { plan_.release(mark); }
  size_t bytes() const { return plan_.bytes(); }

 private:
  char* base_;
  ArenaPlan plan_;
};

/// A capacity for `count` that is at most an eighth larger: passes of nearly the same size then need the same
/// memory.
int64_t roundedCapacity(int64_t count);
/// The largest capacity that is no larger than `count`; 0 below the smallest one.
int64_t roundedDownCapacity(int64_t count);

/// What one block of the transformer reads and writes. Shape letters as in ops/entry.h; F is the MLP's inner
/// width.
struct BlockBuffers {
  void* input = nullptr;            // [N, C] residual stream
  void* attentionNormed = nullptr;  // [N, C]
  void* attentionMean = nullptr;    // [N] (LayerNorm)
  void* attentionRstd = nullptr;    // [N]
  void* qkv = nullptr;              // [N, (H+2G)·D], q and k rotated
  void* queryNormalised = nullptr;  // [N, H, D] (head norms; in saved blocks)
  void* queryRstd = nullptr;        // [N, H]
  void* keyNormalised = nullptr;    // [N, G, D]
  void* keyRstd = nullptr;          // [N, G]
  void* attention = nullptr;        // [N, H·D]
  void* attentionLse = nullptr;     // [N, H]
  void* middle = nullptr;           // [N, C] residual stream between attention and MLP
  void* mlpNormed = nullptr;        // [N, C]
  void* mlpMean = nullptr;          // [N] (LayerNorm)
  void* mlpRstd = nullptr;          // [N]
  void* mlpIn = nullptr;            // [N, 2F] gate and up, or [N, F] before the activation
  void* mlpActivated = nullptr;     // [N, F]
};

struct HeadBuffers {
  void* preActivation = nullptr;  // [N, inner], for the backward pass
  void* activated = nullptr;      // [N, inner]
  void* readValues = nullptr;     // [N] values of the rows that are read, then 0 (only with selectsRows)
};

/// Work of its backward pass.
struct HeadBackwardBuffers {
  void* dValue = nullptr;  // [N] rounded to the engine's type (only where that is narrower than its accumulators)
  void* dInner = nullptr;  // [N, inner]
};

/// The packed rows that a pass is about.
struct RowSet {
  int64_t rows = 0, sequences = 0, maxLength = 0;
  uint64_t dropoutSeed = 0;  // of passes that have row keys
  double lossScale = 1;      // of the gradients in a backward pass
  bool decoding = false;     // each row is one sequence's newest token
  int64_t leftOut = 0;       // rows whose final hidden states nobody reads, of passes that select rows

  int64_t read() const { return rows - leftOut; }
  /// The others by themselves.
  RowSet readAlone() const {
    RowSet those = *this;
    those.rows = read(), those.leftOut = 0;
    return those;
  }
};

/// What decides the memory of a forward pass. Counts are capacities.
struct PassShape {
  int64_t rows = 0, sequences = 0, predictions = 0;
  int firstSavedBlock = 0;  // blocks from here on keep their activations; the number of blocks: none does
  bool recompute = false;   // they keep their input alone, and the backward pass computes the rest again
  bool keepLogits = false;
  bool dropout = false;  // the adapter's
  bool selectsRows = false;  // the last block may end with the rows alone that are read
  const Adapter* adapter = nullptr;
  const Head* head = nullptr;
};

/// All arrays of a forward pass. Kept for the backward pass are: per saved block everything in BlockBuffers but the outputs of norms and
/// activations, the last residual stream and the final hidden states, x·Aᵀ of adapted layers, and the logits where they fit the budget.
/// Those outputs it makes again where a layer's gradient wants them, by the same operators from the same numbers: bit for bit the same. What
/// a plain activation was applied to may be rounded in memory; then its output is kept. Where rows are left out, what the last block keeps
/// from its `middle` on has the rows that are read alone, and so has the last residual stream. Blocks that are not saved share one set, in
/// which the MLP writes where attention did, and update the residual stream in place. With recomputation all blocks share one set, and
/// those to be recomputed write the stream to the next one's input; x·Aᵀ of their last layer is kept too, which saves the backward pass
/// that layer's product.
struct ForwardBuffers {
  int32_t* tokens = nullptr;       // [N]
  int32_t* positions = nullptr;    // [N]
  int32_t* offsets = nullptr;      // [S+1]
  int32_t* parents = nullptr;      // [S], −1 for none
  int32_t* predictions = nullptr;  // [count] in the order of their sources
  int32_t* sources = nullptr;      // [count] the hidden row of each prediction
  int32_t* readRows = nullptr;     // [N] the rows that are read, rising (only with selectsRows)
  int32_t* readPlaces = nullptr;   // [N] of each row its place among them; their number where it is none of them
  std::vector<BlockBuffers> blocks;
  std::vector<void*> loraHidden;  // [N, R] by LinearLayer::index
  int64_t* rowKeys = nullptr;     // [N] what the masks of dropout depend on (only with dropout)
  void* loraInput = nullptr;      // [N, K] work: a layer's input after dropout (only with dropout)
  void* output = nullptr;         // [N, C] residual stream after the last block
  void* finalMean = nullptr;      // [N] (LayerNorm)
  void* finalRstd = nullptr;      // [N]
  void* hidden = nullptr;         // [N, C] after the final norm; 0 in rows that are left out
  void* readHidden = nullptr;     // [N, C] work: those of the rows that are read, then a row of 0 (where rows are left out)
  void* readAttention = nullptr;  // [N, H·D] work: what attention gave these rows in the last block
  HeadBuffers head;
  void* logits = nullptr;  // [count, V] (only with keepLogits), in memory of its own
};

/// `kept` lives as long as the pass, `work` until the forward pass returns; both may be the same layout. The
/// logits are not laid out here: they have a block of memory of their own, of logitsBytes.
ForwardBuffers layOutForward(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                             BufferLayout& kept, BufferLayout& work);
size_t logitsBytes(const Engine& engine, const Architecture& architecture, int64_t predictions);

/// The arrays of a backward pass that recomputes: those of the forward pass, with one set in `work` in place of
/// what the saved blocks did not keep. Without recomputation `forward` itself.
ForwardBuffers layOutRecomputation(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                                   const ForwardBuffers& forward, BufferLayout& work);

/// Work arrays of a backward pass. The gradient of mlpIn overwrites mlpIn where the MLP is gated.
struct BackwardBuffers {
  void* dStream = nullptr;       // [N, C] gradient of the residual stream
  void* dNextStream = nullptr;   // [N, C] parallel residuals: gradient of the stream below a block; else dStream
  void* dNormed = nullptr;       // [N, C] gradient of a norm's output, first of the final hidden states
  void* dReadNormed = nullptr;   // [N, C] of the rows that are read (only with selectsRows)
  void* dActivated = nullptr;    // [N, F]
  void* activated = nullptr;     // [N, F] the last layer's input again (null: the forward pass kept it)
  void* mlpNormed = nullptr;     // [N, C] the same of the layers after norms
  void* attentionNormed = nullptr;  // [N, C]
  void* dAttention = nullptr;    // [N, H·D]
  void* dQkv = nullptr;          // [N, (H+2G)·D]
  void* delta = nullptr;         // [N, H]
  void* loraGradient = nullptr;  // [N, R]
  void* loraInput = nullptr;     // [N, K] a layer's input after dropout (only with dropout), and its gradient
  void* dLoraInput = nullptr;
  HeadBackwardBuffers head;
};

BackwardBuffers layOutBackward(const Engine& engine, const Architecture& architecture, const PassShape& shape,
                               BufferLayout& work);

}  // namespace rlhf
