#pragma once
#include <vector>

#include "model/architecture.h"
#include "ops/linear.h"

namespace rlhf {

/// Copies of a frozen base's matrices in the order in which the backend's matrix products stream them. They
/// are made when a pass first needs them and again after a weight was written. A base that trains has
/// none, and neither has a type or backend without packed forms: weights kept in 16 bits for products in float32 are widened
/// as these read them.
class PackedWeights {
 public:
  PackedWeights(const Architecture& architecture, const ParameterGroup& base)
      : architecture_(architecture), base_(base) {}

  enum Use { kForward = 0, kBackward = 1 };
  void prepareLinears(Use use);
  void prepareHead(Use use);

  LinearWeight linear(const LinearLayer& layer) const;
  LinearWeight head() const;
  size_t bytes() const;

 private:
  struct Form {
    DeviceMemory memory;
    std::vector<const void*> weights;
    uint64_t version = 0;
    bool ready = false;
  };
  struct Matrix {
    int64_t inputs, outputs;
    int32_t transposed;
    int parameter;
  };
  void prepare(Form& form, const std::vector<Matrix>& matrices, Use use);
  const void* packed(const Form& form, int index) const;

  const Architecture& architecture_;
  const ParameterGroup& base_;
  Form linears_[2];
  Form head_[2];
};

}  // namespace rlhf
