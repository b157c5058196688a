#include "node/cuda_plugin.h"

#include <dlfcn.h>
#include <unistd.h>

#include <mutex>
#include <string>

#include "core/error.h"
#include "cuda/plugin.h"
#include "ops/entry.h"

// The plug-in is a library of its own, so that who computes on the CPU never maps CUDA code, and one that does not fit this addon or
// this machine is an error of the call that asked for CUDA, not of loading the package.

namespace rlhf::node {
namespace {

constexpr const char* kFileName = "librlhf_cuda.so";

struct Plugin {
  decltype(&rlhf_cuda_ops) ops = nullptr;
  decltype(&rlhf_cuda_device) open = nullptr;
  decltype(&rlhf_cuda_close_device) close = nullptr;
};

std::string pluginPath() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<void*>(&pluginPath), &info) || !info.dli_fname) return kFileName;
  const std::string addon = info.dli_fname;
  return addon.substr(0, addon.rfind('/') + 1) + kCudaPluginFolder + kFileName;
}

[[noreturn]] void throwNoCuda(const std::string& path, const char* reason) {
  throw Error(code::kNoCuda, format("%s\nThe CUDA backend is %s. To compile it (nvcc 13 is needed): npm run build:cuda in a clone, else "
                                    "RLHF_CUDA=ON npx node-rlhf-build. Device \"cpu\" needs none of it",
                                    reason, path.c_str()));
}

Plugin openPlugin() {
  const std::string path = pluginPath();
  if (access(path.c_str(), F_OK) != 0) throwNoCuda(path, "there is no CUDA backend beside the addon");
  // RTLD_LOCAL: both libraries hold the engine's core, and neither shall take the other's.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throwNoCuda(path, format("the CUDA backend cannot be loaded: %s", dlerror()).c_str());
  const auto refuse = [&](const char* reason) {
    dlclose(library);
    throwNoCuda(path, reason);
  };
  const auto find = [&]<class Function>(Function*& function, const char* name) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    if (!function) refuse("the CUDA backend is not this package's: a function is missing");
  };
  Plugin plugin;
  find(plugin.ops, "rlhf_cuda_ops");
  find(plugin.open, "rlhf_cuda_device");
  find(plugin.close, "rlhf_cuda_close_device");
  if (plugin.ops()->abiHash != abiHash()) refuse("the CUDA backend was built from other sources than this addon");
  return plugin;
}

/// Opened once; an attempt that failed is made again by the next call, since its cause can be mended meanwhile.
const Plugin& plugin() {
  static std::mutex mutex;
  static std::unique_ptr<const Plugin> opened;
  const std::lock_guard lock(mutex);
  if (!opened) opened = std::make_unique<const Plugin>(openPlugin());
  return *opened;
}

}  // namespace

const Ops& cudaOps() { return *plugin().ops(); }

std::shared_ptr<Device> openCudaDevice(int32_t index) {
  const Plugin& cuda = plugin();
  Device* device = nullptr;
  char message[512] = {0};
  const Status status = cuda.open(index, &device, message, sizeof message);
  if (status != kOk) throw Error(errorCodeOf(status), message);
  return {device, cuda.close};
}

}  // namespace rlhf::node
