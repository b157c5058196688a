#pragma once
#include <stdexcept>
#include <string>

namespace rlhf {

/// The `code` that a JavaScript caller sees on an Error. lib/errors.ts documents them.
namespace code {
inline constexpr const char* kShape = "ERR_RLHF_SHAPE";
inline constexpr const char* kArgument = "ERR_RLHF_ARGUMENT";
inline constexpr const char* kConfig = "ERR_RLHF_CONFIG";
inline constexpr const char* kWeights = "ERR_RLHF_WEIGHTS";
inline constexpr const char* kFile = "ERR_RLHF_IO";
inline constexpr const char* kOutOfMemory = "ERR_RLHF_MEMORY";
inline constexpr const char* kPassLive = "ERR_RLHF_PASS_LIVE";
inline constexpr const char* kPassConsumed = "ERR_RLHF_PASS_CONSUMED";
inline constexpr const char* kDisposed = "ERR_RLHF_DISPOSED";
inline constexpr const char* kUnsupported = "ERR_RLHF_UNSUPPORTED";
inline constexpr const char* kTokenRange = "ERR_RLHF_TOKEN_RANGE";
inline constexpr const char* kContextLength = "ERR_RLHF_CONTEXT_LENGTH";
inline constexpr const char* kNonFinite = "ERR_RLHF_NON_FINITE";
inline constexpr const char* kUnknownName = "ERR_RLHF_UNKNOWN_NAME";
inline constexpr const char* kAborted = "ERR_RLHF_ABORTED";
inline constexpr const char* kNoCuda = "ERR_RLHF_NO_CUDA";
inline constexpr const char* kNoCudaDriver = "ERR_RLHF_NO_CUDA_DRIVER";
inline constexpr const char* kOldCudaDriver = "ERR_RLHF_OLD_CUDA_DRIVER";
inline constexpr const char* kNoCudaDevice = "ERR_RLHF_NO_CUDA_DEVICE";
inline constexpr const char* kInternal = "ERR_RLHF_INTERNAL";
}  // namespace code

/// Every failure of the engine: a code from `rlhf::code` and a message that says what was wrong and how to mend it.
class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const noexcept { return code_; }

 private:
  const char* code_;  // always one of the string constants above
};

/// Throws Error(code, message) unless `condition` holds.
inline void require(bool condition, const char* code, const char* message) {
  if (!condition) throw Error(code, message);
}

/// printf-style message building.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace rlhf
