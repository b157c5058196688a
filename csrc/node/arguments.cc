#include "node/arguments.h"

#include <cmath>

namespace rlhf::node {
namespace {

constexpr double kLargestExactInteger = 9007199254740991.0;  // 2^53 − 1

template <class Value, Value (*Convert)(Napi::Value, const char*)>
Value optional(const Napi::Object& object, const char* name, const Value& fallback) {
  const Napi::Value value = object.Get(name);
  return value.IsUndefined() || value.IsNull() ? fallback : Convert(value, name);
}

}  // namespace

double toNumber(Napi::Value value, const char* name) {
  if (!value.IsNumber()) throwArgument(format("%s must be a number", name));
  return value.As<Napi::Number>().DoubleValue();
}

int64_t toInteger(Napi::Value value, const char* name) {
  const double number = toNumber(value, name);
  if (!(std::fabs(number) <= kLargestExactInteger) || number != std::floor(number))
    throwArgument(format("%s must be an integer, got %g", name, number));
  return static_cast<int64_t>(number);
}

bool toBoolean(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) throwArgument(format("%s must be true or false", name));
  return value.As<Napi::Boolean>().Value();
}

std::string toText(Napi::Value value, const char* name) {
  if (!value.IsString()) throwArgument(format("%s must be a string", name));
  return value.As<Napi::String>().Utf8Value();
}

namespace {

template <class Value, Value (*Convert)(Napi::Value, const char*)>
std::vector<Value> toVector(Napi::Value value, const char* name, const char* what) {
  if (!value.IsArray()) throwArgument(format("%s must be an array of %s", name, what));
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<Value> values;
  for (uint32_t i = 0; i < array.Length(); ++i) values.push_back(Convert(array.Get(i), name));
  return values;
}

}  // namespace

std::vector<std::string> toTexts(Napi::Value value, const char* name) {
  return toVector<std::string, toText>(value, name, "strings");
}
std::vector<double> toNumbers(Napi::Value value, const char* name) {
  return toVector<double, toNumber>(value, name, "numbers");
}
std::vector<int64_t> toIntegers(Napi::Value value, const char* name) {
  return toVector<int64_t, toInteger>(value, name, "integers");
}

Napi::Object toObject(Napi::Value value, const char* name) {
  if (!value.IsObject()) throwArgument(format("%s must be an object", name));
  return value.As<Napi::Object>();
}

Napi::Function toFunction(Napi::Value value, const char* name) {
  if (!value.IsFunction()) throwArgument(format("%s must be a function", name));
  return value.As<Napi::Function>();
}

std::vector<int32_t> toInt32s(Napi::Value value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    throwArgument(format("%s must be an Int32Array", name));
  const Napi::Int32Array array = value.As<Napi::Int32Array>();
  return std::vector<int32_t>(array.Data(), array.Data() + array.ElementLength());
}

namespace {

Napi::Float32Array toFloat32Array(Napi::Value value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array)
    throwArgument(format("%s must be a Float32Array", name));
  return value.As<Napi::Float32Array>();
}

}  // namespace

FloatSpan toFloats(Napi::Value value, const char* name, const Pins& pins) {
  Napi::Float32Array array = toFloat32Array(value, name);
  pins->push_back(Napi::Persistent(value.As<Napi::Object>()));
  return {array.Data(), static_cast<int64_t>(array.ElementLength())};
}

Floats copyFloats(Napi::Value value, const char* name) {
  const Napi::Float32Array array = toFloat32Array(value, name);
  return std::make_shared<const std::vector<float>>(array.Data(), array.Data() + array.ElementLength());
}

double number(const Napi::Object& object, const char* name, double fallback) {
  return optional<double, toNumber>(object, name, fallback);
}
int64_t integer(const Napi::Object& object, const char* name, int64_t fallback) {
  return optional<int64_t, toInteger>(object, name, fallback);
}
bool boolean(const Napi::Object& object, const char* name, bool fallback) {
  return optional<bool, toBoolean>(object, name, fallback);
}
std::string text(const Napi::Object& object, const char* name, const std::string& fallback) {
  return optional<std::string, toText>(object, name, fallback);
}

Napi::Value field(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (value.IsUndefined()) throwArgument(format("%s is missing", name));
  return value;
}

}  // namespace rlhf::node
