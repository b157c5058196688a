#pragma once
#include <string>

#include "model/buffers.h"
#include "model/parameters.h"

namespace rlhf {

/// A scalar head on the final hidden states: value[n] = weight·act(inner·hidden[n] + innerBias) + bias, or
/// without the inner layer.
struct Head {
  /// Throws ERR_RLHF_ARGUMENT for sizes or spreads that make no sense.
  Head(Engine& engine, int64_t hidden, const std::string& name, const HeadConfig& config);

  HeadConfig config;
  ParameterGroup group;
  int64_t hidden;
  int innerWeight = -1, innerBias = -1, weight = -1, bias = -1;

  /// value[rows], of the accumulator type, from hidden [rows, C].
  void forward(int64_t rows, const void* hiddenStates, const HeadBuffers& buffers, void* value) const;
  /// Adds to the group's gradients; dHidden [rows, C] is overwritten unless it is null.
  void backward(const RowSet& rowSet, const void* hiddenStates, const HeadBuffers& buffers, const void* dValue,
                const HeadBackwardBuffers& work, void* dHidden);
};

}  // namespace rlhf
