#include "node/kernels_backends.h"

#include <algorithm>
#include <map>
#include <memory>

#include "cpu/backend.h"
#include "node/cuda_plugin.h"
#include "ref/backend.h"
#include "simt/backend.h"

namespace rlhf::kernels {
namespace {

constexpr const char* kInstructionSets[] = {"avx512", "avx2", "neon", "scalar"};

const std::string kCpuPrefix = "cpu:";

const Ops* findOps(const std::string& name) {
  if (name == "ref") return &refOps();
  if (name == "simt") return &simt::ops();
  if (name == "simt:apart") return &simt::apartOps();
  if (name == "cuda") return &node::cudaOps();
  if (name == "cpu") return &cpu::ops();
  if (name.starts_with(kCpuPrefix)) return cpu::opsFor(name.substr(kCpuPrefix.size()).c_str());
  return nullptr;
}

/// Devices live as long as the process, as do the contexts that use them.
Device* openDevice(const std::string& name, int threads) {
  if (name == "simt") return simt::device();
  if (name == "simt:apart") return simt::apartDevice();
  if (name == "cuda") {
    static auto& cuda = *new std::shared_ptr<Device>(node::openCudaDevice(0));  // never closed: CUDA ends before what is static does
    return cuda.get();
  }
  if (name == "ref") {
    static const std::unique_ptr<Device> device = createRefDevice();
    return device.get();
  }
  static std::map<int, std::unique_ptr<cpu::CpuDevice>> devices;
  std::unique_ptr<cpu::CpuDevice>& device = devices[threads];
  if (!device) device = std::make_unique<cpu::CpuDevice>(threads);
  return device.get();
}

}  // namespace

Backend::Backend(const Ops& ops, Device* device) : ops_(ops) {
  if (ops.abiHash != abiHash() || device->abiHash != abiHash())
    throw Error(code::kInternal, format("backend %s was built from other headers than this addon", ops.backend));
  context_.device = device;
  check(device->createStream(device, &context_.stream), "creating a stream");
}

Backend::~Backend() {
  Device* device = context_.device;
  if (context_.scratch) device->release(device, context_.scratch);
  device->destroyStream(device, context_.stream);
}

void Backend::reserveScratch(const ScratchLimits& limits, bool poison) {
  Device* device = context_.device;
  const size_t bytes = ops_.scratchBytes(device, &limits);
  if (bytes > capacity_) {
    if (context_.scratch) device->release(device, context_.scratch);
    context_.scratch = nullptr;
    capacity_ = 0;
    context_.scratch = allocate(bytes, "scratch memory");
    capacity_ = bytes;
  }
  context_.scratchBytes = bytes;
  if (poison) fill(context_.scratch, 0xFF, bytes);
}

void Backend::check(Status status, const char* what) const {
  if (status == kOk) return;
  const Device& device = *context_.device;
  throw Error(errorCodeOf(status), format("%s failed on %s%s%s", what, device.name, *device.error ? ": " : "", device.error));
}

void* Backend::allocate(size_t bytes, const char* what) {
  void* memory = nullptr;
  const Status status = device()->allocate(device(), bytes, &memory);
  if (status != kOk && status != kNoMemory) check(status, "taking memory (what was queued before it may be what failed)");
  if (status != kOk)
    throw Error(code::kOutOfMemory, format("%s cannot allocate %zu bytes of %s", device()->name, bytes, what));
  return memory;
}

void Backend::copy(void* destination, const void* source, size_t bytes) {
  if (bytes > 0) check(device()->copyAsync(device(), context_.stream, destination, source, bytes), "a copy");
}

void Backend::fill(void* destination, int byteValue, size_t bytes) {
  if (bytes > 0) check(device()->fillAsync(device(), context_.stream, destination, byteValue, bytes), "a fill");
}

void Backend::synchronize() { check(device()->synchronize(device(), context_.stream), "waiting for the stream"); }

std::vector<std::string> backendNames() {
  std::vector<std::string> names = {"ref"};
  for (const char* instructionSet : kInstructionSets)
    if (cpu::opsFor(instructionSet)) names.push_back(kCpuPrefix + instructionSet);
  names.push_back("simt");
  return names;
}

Backend& openBackend(const std::string& name, int threads) {
  // Never destroyed: as the process ends, the devices, which are made after this list, are gone before it.
  static auto& backends = *new std::map<std::pair<std::string, int>, std::unique_ptr<Backend>>;
  std::unique_ptr<Backend>& backend = backends[{name, threads}];
  if (backend) return *backend;
  const Ops* ops = findOps(name);
  if (!ops) {
    std::string known = "cpu";
    for (const std::string& each : backendNames()) known += ", " + each;
    known += ", simt:apart, cuda";
    throw Error(code::kUnknownName, "there is no backend \"" + name + "\" here; these are: " + known);
  }
  backend = std::make_unique<Backend>(*ops, openDevice(name, std::max(1, threads)));
  return *backend;
}

}  // namespace rlhf::kernels
