#include "node/cuda_plugin.h"
#include "node/handles.h"

const char* const rlhf::node::kCudaPluginFolder = "";  // beside this addon

namespace {

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  using namespace rlhf::node;
  auto* data = new AddonData();
  env.SetInstanceData(data);  // deleted by the environment
  defineEngine(env, exports, *data);
  defineModel(env, exports, *data);
  definePass(env, exports, *data);
  defineArray(env, exports, *data);
  defineOptimizer(env, exports, *data);
  defineLosses(env, exports);
  definePreferenceLosses(env, exports);
  defineMlp(env, exports);
  exports.Set("defaultThreadCount", Napi::Number::New(env, rlhf::defaultThreadCount()));
  return exports;
}

}  // namespace

NODE_API_MODULE(rlhf, initialise)
