#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "node/command_queue.h"

// Reading JavaScript values. lib/engine/native.ts types these calls, so a wrong value here is a mistake of a caller that went
// round the types; it still gets ERR_RLHF_ARGUMENT and the argument's name.

namespace rlhf::node {

[[noreturn]] inline void throwArgument(const std::string& message) { throw Error(code::kArgument, message); }

double toNumber(Napi::Value value, const char* name);
int64_t toInteger(Napi::Value value, const char* name);
bool toBoolean(Napi::Value value, const char* name);
std::string toText(Napi::Value value, const char* name);
std::vector<std::string> toTexts(Napi::Value value, const char* name);
/// JavaScript arrays of numbers.
std::vector<double> toNumbers(Napi::Value value, const char* name);
std::vector<int64_t> toIntegers(Napi::Value value, const char* name);
Napi::Object toObject(Napi::Value value, const char* name);
Napi::Function toFunction(Napi::Value value, const char* name);
std::vector<int32_t> toInt32s(Napi::Value value, const char* name);

/// A field of an object, or the fallback where it is undefined.
double number(const Napi::Object& object, const char* name, double fallback);
int64_t integer(const Napi::Object& object, const char* name, int64_t fallback);
bool boolean(const Napi::Object& object, const char* name, bool fallback);
std::string text(const Napi::Object& object, const char* name, const std::string& fallback);
/// A field that must be there.
Napi::Value field(const Napi::Object& object, const char* name);

/// JavaScript values that must stay alive, and where they are, until a command has run. Freed on the event loop.
using Pins = std::shared_ptr<std::vector<Napi::ObjectReference>>;
inline Pins makePins() { return std::make_shared<std::vector<Napi::ObjectReference>>(); }

/// The memory of a Float32Array that a command fills, kept alive by `pins`. Only for arrays that nobody else sees before the promise
/// settles: JavaScript can take an array's memory away, and arrays that a command reads are therefore copied.
struct FloatSpan {
  float* data = nullptr;
  int64_t length = 0;
};
FloatSpan toFloats(Napi::Value value, const char* name, const Pins& pins);
/// A copy of a Float32Array.
using Floats = std::shared_ptr<const std::vector<float>>;
Floats copyFloats(Napi::Value value, const char* name);

/// Runs a wrapped function: what it throws becomes a JavaScript exception with a code.
template <class Body>
Napi::Value guarded(Napi::Env env, Body body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw toNapiError(env, std::current_exception());
  }
}
template <class Body>
Napi::Value guarded(const Napi::CallbackInfo& info, Body body) {
  return guarded(info.Env(), std::move(body));
}

}  // namespace rlhf::node
