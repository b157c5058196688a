#pragma once
#include <napi.h>

#include <string>
#include <type_traits>
#include <vector>

#include "ops/entry.h"

namespace rlhf::kernels {

/// The element types of a pointer field, by their names in JavaScript. `void` fields take any array of numbers.
template <class Pointer>
constexpr const char* elementName() {
  using Element = std::remove_const_t<std::remove_pointer_t<Pointer>>;
  if constexpr (std::is_void_v<Element>) return "any";
  else if constexpr (std::is_same_v<Element, int32_t>) return "Int32Array";
  else if constexpr (std::is_same_v<Element, int64_t>) return "BigInt64Array";
  else if constexpr (std::is_same_v<Element, uint8_t>) return "Uint8Array";
  else {
    static_assert(std::is_same_v<Element, double>);
    return "Float64Array";
  }
}

/// "type" for a data type, "integer", "real", or "input"/"output" for an array.
template <class Field>
constexpr const char* kindName() {
  if constexpr (std::is_pointer_v<Field>)
    return std::is_const_v<std::remove_pointer_t<Field>> ? "input" : "output";
  else if constexpr (std::is_same_v<Field, DType>) return "type";
  else if constexpr (std::is_floating_point_v<Field>) return "real";
  else return "integer";
}

/// The data type that a string names. Throws a TypeError that lists the names.
DType toDType(Napi::Value value, const std::string& what);

/// The memory of an ArrayBuffer.
struct HostBuffer {
  char* data = nullptr;
  size_t bytes = 0;
};

/// Fills an op's argument structure from a JavaScript object, field by field. What is absent keeps its default; a
/// value of the wrong kind and a key that the op does not have are TypeErrors that name it.
class ArgumentReader {
 public:
  ArgumentReader(const char* op, Napi::Object object) : op_(op), object_(object) {}

  template <class Field>
  void operator()(const char* name, Field& field) {
    known_.push_back(name);
    const Napi::Value value = object_.Get(name);
    const bool absent = value.IsUndefined() || value.IsNull();
    if constexpr (std::is_same_v<Field, DType>) {
      if (known_.size() == 1) type_ = absent ? inferredType() : toDType(value, describe(name));
      field = absent || known_.size() == 1 ? type_ : toDType(value, describe(name));
    } else if (absent) {
      return;
    } else if constexpr (std::is_pointer_v<Field>) {
      field = static_cast<Field>(array(name, value, elementName<Field>()));
    } else if constexpr (std::is_floating_point_v<Field>) {
      field = number(name, value);
    } else if constexpr (std::is_same_v<Field, uint64_t>) {
      field = unsignedInteger(name, value);
    } else {
      field = static_cast<Field>(integer(name, value));
    }
  }

  /// Call when all fields have been read.
  void rejectUnknownKeys() const;

  /// What the arrays that were read lie in, each once.
  const std::vector<HostBuffer>& buffers() const { return buffers_; }

 private:
  std::string describe(const char* name) const { return std::string(op_) + ": " + name; }
  double number(const char* name, Napi::Value value) const;
  int64_t integer(const char* name, Napi::Value value) const;
  uint64_t unsignedInteger(const char* name, Napi::Value value) const;
  void* array(const char* name, Napi::Value value, const char* element);
  /// float64 if the first floating-point array of the object is a Float64Array, else float32.
  DType inferredType() const;

  const char* op_;
  Napi::Object object_;
  std::vector<std::string> known_;
  std::vector<HostBuffer> buffers_;
  DType type_ = DType::F32;
};

/// An op's arguments, and the ArrayBuffers that their arrays are views of.
template <class Arguments>
struct GivenArguments {
  Arguments arguments;
  std::vector<HostBuffer> buffers;
};

template <class Arguments>
GivenArguments<Arguments> readArguments(const char* op, Napi::Object object) {
  GivenArguments<Arguments> given;
  ArgumentReader reader(op, object);
  given.arguments.fields(reader);
  reader.rejectUnknownKeys();
  given.buffers = reader.buffers();
  return given;
}

/// The sizes that an op's arguments name, as a model that runs this op alone would ask for them.
class LimitsReader {
 public:
  template <class Field>
  void operator()(const std::string& name, Field& field) {
    if constexpr (std::is_same_v<Field, int64_t>) note(name, field);
  }
  const ScratchLimits& limits() const { return limits_; }

 private:
  void note(const std::string& name, int64_t value);
  ScratchLimits limits_;
};

template <class Arguments>
ScratchLimits scratchLimits(Arguments arguments) {
  LimitsReader reader;
  arguments.fields(reader);
  return reader.limits();
}

}  // namespace rlhf::kernels
