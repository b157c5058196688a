#pragma once
#include <string>
#include <vector>

#include "ops/entry.h"

namespace rlhf::kernels {

/// A backend that is ready to run ops: its table, and a context whose scratch memory grows as ops ask for it.
class Backend {
 public:
  Backend(const Ops& ops, Device* device);
  ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const Ops& ops() const { return ops_; }
  Device* device() const { return context_.device; }
  OpContext& context() { return context_; }

  /// Gives the context at least the scratch memory that the backend asks for, and no more in the context's own
  /// count, so that an op which needs more than it said is found out. `poison` fills it with NaN patterns: scratch
  /// has no contents to rely on.
  void reserveScratch(const ScratchLimits& limits, bool poison);

 private:
  const Ops& ops_;
  OpContext context_;
  size_t capacity_ = 0;
};

/// The names of the backends that this build and this processor have: "ref", "cpu:avx512", "cpu:avx2",
/// "cpu:scalar", "simt".
std::vector<std::string> backendNames();

/// The backend of that name on so many threads, opened at its first use and kept. "cpu" is the best instruction
/// set. Throws Error(ERR_RLHF_UNKNOWN_NAME) for a name that backendNames() does not list.
Backend& openBackend(const std::string& name, int threads);

}  // namespace rlhf::kernels
