#include "node/kernels_arguments.h"

#include <algorithm>
#include <cmath>

namespace rlhf::kernels {
namespace {

constexpr DType kTypes[] = {DType::F32, DType::F64, DType::F16, DType::BF16, DType::C128, DType::BF16X3};
constexpr double kLargestSafeInteger = 9007199254740991.0;

[[noreturn]] void throwType(Napi::Env env, const std::string& message) {
  throw Napi::TypeError::New(env, message);
}

const char* arrayName(napi_typedarray_type type) {
  switch (type) {
    case napi_int32_array: return "Int32Array";
    case napi_uint8_array: return "Uint8Array";
    case napi_uint16_array: return "Uint16Array";
    case napi_float32_array: return "Float32Array";
    case napi_float64_array: return "Float64Array";
    case napi_bigint64_array: return "BigInt64Array";
    default: return "another typed array";
  }
}

}  // namespace

DType toDType(Napi::Value value, const std::string& what) {
  std::string names;
  for (DType type : kTypes) {
    if (value.IsString() && value.As<Napi::String>().Utf8Value() == dtypeName(type)) return type;
    names += std::string(names.empty() ? "" : ", ") + dtypeName(type);
  }
  throwType(value.Env(), what + " must be one of " + names);
}

void ArgumentReader::rejectUnknownKeys() const {
  const Napi::Array keys = object_.GetPropertyNames();
  for (uint32_t i = 0; i < keys.Length(); ++i) {
    const std::string key = keys.Get(i).ToString().Utf8Value();
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    std::string all;
    for (const std::string& name : known_) all += (all.empty() ? "" : ", ") + name;
    throwType(object_.Env(), std::string(op_) + ": unknown argument \"" + key + "\"; it takes " + all);
  }
}

double ArgumentReader::number(const char* name, Napi::Value value) const {
  if (!value.IsNumber()) throwType(object_.Env(), describe(name) + " must be a number");
  return value.As<Napi::Number>().DoubleValue();
}

int64_t ArgumentReader::integer(const char* name, Napi::Value value) const {
  if (value.IsBoolean()) return value.As<Napi::Boolean>().Value() ? 1 : 0;
  const double given = number(name, value);
  if (std::trunc(given) != given || std::abs(given) > kLargestSafeInteger)
    throwType(object_.Env(), describe(name) + " must be an integer");
  return static_cast<int64_t>(given);
}

uint64_t ArgumentReader::unsignedInteger(const char* name, Napi::Value value) const {
  if (value.IsBigInt()) {
    bool lossless = false;
    const uint64_t given = value.As<Napi::BigInt>().Uint64Value(&lossless);
    if (lossless) return given;
  } else {
    const int64_t given = integer(name, value);
    if (given >= 0) return static_cast<uint64_t>(given);
  }
  throwType(object_.Env(), describe(name) + " must be from 0 to 2^64 − 1");
}

void* ArgumentReader::array(const char* name, Napi::Value value, const char* element) {
  const bool any = std::string(element) == "any";
  if (!value.IsTypedArray())
    throwType(object_.Env(), describe(name) + " must be a " + (any ? "typed array" : element));
  const Napi::TypedArray array = value.As<Napi::TypedArray>();
  const std::string given = arrayName(array.TypedArrayType());
  if (!any && given != element)
    throwType(object_.Env(), describe(name) + " must be a " + element + ", got " + given);
  const HostBuffer buffer{static_cast<char*>(array.ArrayBuffer().Data()), array.ArrayBuffer().ByteLength()};
  const auto isSame = [&](const HostBuffer& other) { return other.data == buffer.data; };
  if (buffer.data && std::none_of(buffers_.begin(), buffers_.end(), isSame)) buffers_.push_back(buffer);
  return buffer.data + array.ByteOffset();
}

DType ArgumentReader::inferredType() const {
  const Napi::Array keys = object_.GetPropertyNames();
  for (uint32_t i = 0; i < keys.Length(); ++i) {
    const Napi::Value value = object_.Get(keys.Get(i));
    if (!value.IsTypedArray()) continue;
    const napi_typedarray_type type = value.As<Napi::TypedArray>().TypedArrayType();
    if (type == napi_float32_array) return DType::F32;
    if (type == napi_float64_array) return DType::F64;
  }
  return DType::F32;
}

void LimitsReader::note(const std::string& name, int64_t value) {
  const auto raise = [value](int64_t& limit) { limit = std::max(limit, value); };
  if (name == "rows") raise(limits_.rows);
  else if (name == "inputs" || name == "outputs" || name == "cols" || name == "refCols") raise(limits_.maxWidth);
  else if (name == "vocab") raise(limits_.vocab);
  else if (name == "rank") raise(limits_.maxRank);
  else if (name == "heads") raise(limits_.heads);
  else if (name == "kvHeads") raise(limits_.kvHeads);
  else if (name == "headDim") raise(limits_.headDim);
  else if (name == "tableStride") raise(limits_.tableStride);
}

}  // namespace rlhf::kernels
