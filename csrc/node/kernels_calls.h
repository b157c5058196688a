#pragma once
#include <napi.h>

#include <string>

#include "core/error.h"
#include "node/kernels_arguments.h"
#include "node/kernels_backends.h"

// What the functions of rlhf_kernels.node have in common.

namespace rlhf::kernels {

/// Runs a function of the addon: an rlhf::Error becomes a JavaScript Error with its `code`.
template <class Body>
Napi::Value guarded(const Napi::CallbackInfo& info, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    Napi::Error thrown = Napi::Error::New(info.Env(), error.what());
    thrown.Value().Set("code", error.code());
    throw thrown;
  }
}

inline std::string toText(Napi::Value value, const char* what) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

inline Napi::Object toObject(Napi::Value value, const char* what) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be an object");
  return value.As<Napi::Object>();
}

inline int64_t toInteger(Napi::Value value, const char* what) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a number");
  return value.As<Napi::Number>().Int64Value();
}

/// options.threads, 1 where nothing is said.
inline int threadsOf(Napi::Value options) {
  if (options.IsUndefined()) return 1;
  const Napi::Value threads = toObject(options, "options").Get("threads");
  return threads.IsUndefined() ? 1 : static_cast<int>(toInteger(threads, "options.threads"));
}

/// Calls body.operator()<Arguments>(name, entry) for the op of that name; `entry` is its place in the table.
template <class Body>
Napi::Value withOp(const Ops& ops, const std::string& op, Body&& body) {
#define RLHF_MATCH_OP(name, Arguments) \
  if (op == #name) return body.template operator()<Arguments>(#name, ops.name);
  RLHF_FOR_EACH_OP(RLHF_MATCH_OP)
#undef RLHF_MATCH_OP
  throw Error(code::kUnknownName, format("there is no op \"%s\"", op.c_str()));
}

}  // namespace rlhf::kernels
