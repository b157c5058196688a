#pragma once
#include <napi.h>

namespace rlhf::kernels {

/// Adds what times ops and measures what this machine reaches to the addon's exports.
void defineBench(Napi::Env env, Napi::Object exports);

}  // namespace rlhf::kernels
