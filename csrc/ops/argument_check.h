#pragma once
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "core/error.h"
#include "ops/context.h"

namespace rlhf {

/// Checks the arguments of one op. Every failure is an Error that names the op, the field, what was given and what
/// is expected: ERR_RLHF_SHAPE for sizes and strides, ERR_RLHF_ARGUMENT for pointers and values.
class ArgumentCheck {
 public:
  explicit ArgumentCheck(const char* op) : op_(op) {}

  /// A type that activations, parameters or statistics may have.
  void floating(const char* field, DType type) const {
    switch (type) {
      case DType::F32:
      case DType::F64:
      case DType::F16:
      case DType::BF16:
      case DType::C128: return;
      case DType::I32:
      case DType::BF16X3: break;
    }
    fail(code::kArgument, field, dtypeName(type), "a floating-point type");
  }

  /// What matrix products may be computed in.
  void product(const char* field, DType type) const {
    if (type != DType::BF16X3) floating(field, type);
  }

  /// As `floating`, for ops that order numbers and so have no complex form.
  void real(const char* field, DType type) const {
    floating(field, type);
    if (type == DType::C128) fail(code::kArgument, field, dtypeName(type), "a real floating-point type");
  }

  /// A type of storage: that of the activations, or bfloat16.
  void sameOrBfloat16(const char* field, DType storage, DType type) const {
    if (storage != type && storage != DType::BF16)
      fail(code::kArgument, field, dtypeName(storage), std::string(dtypeName(type)) + " or bfloat16");
  }

  void atLeast(const char* field, int64_t value, int64_t minimum) const {
    if (value < minimum) failShape(field, value, format("≥ %lld", static_cast<long long>(minimum)));
  }

  /// Sizes of at least 1.
  void positive(std::initializer_list<std::pair<const char*, int64_t>> sizes) const {
    for (const auto& [field, value] : sizes) atLeast(field, value, 1);
  }

  void between(const char* field, int64_t value, int64_t minimum, int64_t maximum) const {
    if (value >= minimum && value <= maximum) return;
    failShape(field, value,
              format("%lld to %lld", static_cast<long long>(minimum), static_cast<long long>(maximum)));
  }

  /// `value` elements from one row to the next must hold a row of `width` elements.
  void stride(const char* field, int64_t value, const char* widthName, int64_t width) const {
    if (value < width)
      failShape(field, value, format("≥ %s = %lld", widthName, static_cast<long long>(width)));
  }

  void multiple(const char* field, int64_t value, const char* divisorName, int64_t divisor) const {
    if (value % divisor != 0)
      failShape(field, value, format("a multiple of %s = %lld", divisorName, static_cast<long long>(divisor)));
  }

  void present(const char* field, const void* array) const {
    if (!array) fail(code::kArgument, field, "null", "an array");
  }

  void present(std::initializer_list<std::pair<const char*, const void*>> arrays) const {
    for (const auto& [field, array] : arrays) present(field, array);
  }

  /// An array that is required because of `reason`, such as "with rank > 0".
  void presentWhen(bool needed, const char* field, const void* array, const char* reason) const {
    if (needed && !array) fail(code::kArgument, field, "null", std::string("an array ") + reason);
  }

  /// An array that has no meaning because of `reason`.
  void absentWhen(bool meaningless, const char* field, const void* array, const char* reason) const {
    if (meaningless && array) fail(code::kArgument, field, "an array", std::string("null ") + reason);
  }

  void flag(const char* field, int32_t value) const {
    if (value != 0 && value != 1) fail(code::kArgument, field, std::to_string(value), "0 or 1");
  }

  /// An enumerator's number in [minimum, maximum].
  void choice(const char* field, int32_t value, int32_t minimum, int32_t maximum) const {
    if (value < minimum || value > maximum)
      fail(code::kArgument, field, std::to_string(value), format("%d to %d", minimum, maximum));
  }

  void finite(const char* field, double value) const {
    if (!std::isfinite(value)) fail(code::kArgument, field, format("%g", value), "a finite number");
  }

  void number(const char* field, double value, bool holds, const char* expected) const {
    if (!holds || !std::isfinite(value)) fail(code::kArgument, field, format("%g", value), expected);
  }

 private:
  [[noreturn]] void fail(const char* errorCode, const char* field, const std::string& given,
                         const std::string& expected) const {
    throw Error(errorCode, std::string(op_) + ": " + field + " is " + given + ", expected " + expected);
  }
  [[noreturn]] void failShape(const char* field, int64_t given, const std::string& expected) const {
    fail(code::kShape, field, std::to_string(given), expected);
  }

  const char* op_;
};

}  // namespace rlhf
