#pragma once
#include <cstdio>
#include <cstring>
#include <new>

#include "core/error.h"
#include "ops/ops.h"

namespace rlhf {

inline Status statusOf(const Error& error) {
  if (std::strcmp(error.code(), code::kShape) == 0) return kBadShape;
  if (std::strcmp(error.code(), code::kUnsupported) == 0) return kNotSupported;
  if (std::strcmp(error.code(), code::kOutOfMemory) == 0) return kNoMemory;
  if (std::strcmp(error.code(), code::kTokenRange) == 0) return kTokenOutOfRange;
  if (std::strcmp(error.code(), code::kArgument) == 0) return kBadArgument;
  if (std::strcmp(error.code(), code::kNonFinite) == 0) return kNotFinite;
  if (std::strcmp(error.code(), code::kNoCudaDriver) == 0) return kNoDriver;
  if (std::strcmp(error.code(), code::kOldCudaDriver) == 0) return kOldDriver;
  if (std::strcmp(error.code(), code::kNoCudaDevice) == 0) return kNoDevice;
  return kDeviceFailure;
}

/// The Error code that a status stands for on the caller's side of the ABI.
inline const char* errorCodeOf(Status status) {
  switch (status) {
    case kBadArgument: return code::kArgument;
    case kBadShape: return code::kShape;
    case kNotSupported: return code::kUnsupported;
    case kNoMemory: return code::kOutOfMemory;
    case kTokenOutOfRange: return code::kTokenRange;
    case kNotFinite: return code::kNonFinite;
    case kNoDriver: return code::kNoCudaDriver;
    case kOldDriver: return code::kOldCudaDriver;
    case kNoDevice: return code::kNoCudaDevice;
    default: return code::kInternal;
  }
}

/// Makes the ABI entry of an op from a function that throws: validates, runs, turns exceptions into a status and a message.
template <class Arguments, void (*Kernel)(OpContext&, const Arguments&)>
Status opEntry(OpContext* context, const Arguments* arguments) noexcept {
  try {
    validate(*arguments);
    Kernel(*context, *arguments);
    return kOk;
  } catch (const Error& error) {
    std::snprintf(context->error, sizeof context->error, "%s", error.what());
    return statusOf(error);
  } catch (const std::bad_alloc&) {
    std::snprintf(context->error, sizeof context->error, "out of memory inside an op");
    return kNoMemory;
  } catch (const std::exception& error) {
    std::snprintf(context->error, sizeof context->error, "%s", error.what());
    return kDeviceFailure;
  }
}

/// Calls an op through the table; throws Error with the backend's message.
template <class Arguments>
void runOp(OpContext& context, Status (*op)(OpContext*, const Arguments*), const Arguments& arguments) {
  if (!op) throw Error(code::kUnsupported, "this backend does not have the op that was asked for");
  const Status status = op(&context, &arguments);
  if (status != kOk) throw Error(errorCodeOf(status), context.error);
}

}  // namespace rlhf
