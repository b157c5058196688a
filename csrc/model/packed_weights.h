#pragma once
#include <vector>

#include "model/architecture.h"
#include "ops/linear.h"

namespace rlhf {

/// A frozen base's matrices in the order in which the backend's matrix products stream them. Where products have the type that the
/// weights are kept in, packing only moves numbers: then a matrix is packed for y = x·Wᵀ as soon as it is written, and the plain one goes
/// (ParameterGroup::keepApart). Other forms are made when a pass first needs them, and all of them again after a weight was written. A base that trains has
/// none, and neither has a type or backend without packed forms: weights kept in 16 bits for products in float32 are widened
/// as these read them.
class PackedWeights : public ParameterKeeper {
 public:
  PackedWeights(const Architecture& architecture, ParameterGroup& base) : architecture_(architecture), base_(base) {}
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  /// Once each, before and after the base is allocated: with no value written yet all weights are zero.
  void plan(Engine& engine, DType storage);
  void allocate();

  enum Use { kForward = 0, kBackward = 1 };
  /// Whether products backward have forms of their own, which is the default. Without them they read what stands for products forward, where
  /// that can be done, and rearrange it block by block: the same bits, later.
  void setBackwardForms(bool held);
  void prepareLinears(Use wanted);
  void prepareHead(Use wanted);

  LinearWeight linear(const LinearLayer& layer) const;
  LinearWeight head() const;
  /// The embedding as the head's packed form, where the two are one matrix and the plain one is not held; else null.
  const void* packedEmbedding();
  size_t bytes() const;

  void restore(int parameter, void* plain) override;
  void keep(int parameter) override;

 private:
  struct Form {
    size_t bytes = 0;  // 0: there is no such form
    char* data = nullptr;
    uint64_t version = 0;
    bool ready = false;
  };
  struct Matrix {
    int64_t inputs = 0, outputs = 0;
    int32_t transposed = 0;
    int parameter = -1;
    bool apart = false;  // the plain one is not held beside the packed one
    Form forms[2];
  };
  Matrix& matrixOf(int parameter);
  size_t matrixBytes(const Matrix& matrix) const;
  /// Which form serves such products.
  Use formFor(Use use) const;
  template <class Wanted>
  void takeMemory(Use use, Wanted wanted);
  void prepare(Matrix& matrix, Use use);
  bool current(const Matrix& matrix, Use use) const;
  LinearWeight weight(const Matrix& matrix) const;

  const Architecture& architecture_;
  ParameterGroup& base_;
  bool backwardForms_ = true;
  std::vector<Matrix> matrices_;  // of linear layers by LinearLayer::index, the head's last
  std::vector<DeviceMemory> blocks_[2];  // by use; each holds forms of several matrices
};

}  // namespace rlhf
