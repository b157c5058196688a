#pragma once
#include <memory>

#include "model/adapter.h"

namespace rlhf {

/// An adapter that has been added to the base's weights, W += scale·B·A, with a copy of what those weights were: adding and
/// subtracting B·A would not give the same bits back.
class MergedAdapter {
 public:
  /// Merges. What it needs is allocated first, and whatever is thrown leaves the base as it was.
  MergedAdapter(Engine& engine, const Architecture& architecture, ParameterGroup& base,
                std::shared_ptr<Adapter> adapter);

  /// Puts the weights back. Throws ERR_RLHF_ARGUMENT where the base has been written since, which would be lost.
  void unmerge();

  const std::shared_ptr<Adapter>& adapter() const { return adapter_; }
  size_t bytes() const { return originals_.bytes(); }

 private:
  void add(const LinearLayer& linear, DeviceMemory& dy);
  void restore();
  void changed(const LinearLayer& linear);
  size_t weightBytes(const LinearLayer& linear) const;
  /// Calls body(layer, offset of its copy) for the adapted layers; returns the bytes of all copies.
  template <class Body>
  size_t forEachCopy(Body&& body) const;

  Engine& engine_;
  const Architecture& architecture_;
  ParameterGroup& base_;
  std::shared_ptr<Adapter> adapter_;
  DeviceMemory originals_;
  uint64_t version_ = 0;  // of the base after merging
};

}  // namespace rlhf
