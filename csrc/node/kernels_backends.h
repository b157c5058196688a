#pragma once
#include <string>
#include <vector>

#include "ops/entry.h"

namespace rlhf::kernels {

/// A backend that is ready to run ops: its table, and a context whose scratch memory grows as ops ask for it. What fails on its device
/// is an Error with the driver's words.
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

  void* allocate(size_t bytes, const char* what);
  void release(void* memory) { device()->release(device(), memory); }
  /// In the order of the stream, as ops are.
  void copy(void* destination, const void* source, size_t bytes);
  void fill(void* destination, int byteValue, size_t bytes);
  void synchronize();
  void check(Status status, const char* what) const;

 private:
  const Ops& ops_;
  OpContext context_;
  size_t capacity_ = 0;
};

/// The names of the backends that this build and this processor have: "ref", "cpu:avx512", "cpu:avx2",
/// "cpu:scalar", "simt".
std::vector<std::string> backendNames();

/// The backend of that name on so many threads, opened at its first use and kept. Beside those of backendNames() there are "cpu", the best
/// instruction set; "simt:apart", the emulator with memory of its own; and "cuda", the first GPU.
/// Throws Error(ERR_RLHF_UNKNOWN_NAME) for another name, and what openCudaDevice throws.
Backend& openBackend(const std::string& name, int threads);

}  // namespace rlhf::kernels
