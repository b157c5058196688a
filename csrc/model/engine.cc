#include "model/engine.h"

#include <utility>

namespace rlhf {
namespace {

void check(const Engine& engine, Status status, const char* what) {
  if (status == kOk) return;
  const char* code = status == kNoMemory ? code::kOutOfMemory : code::kInternal;
  throw Error(code,
              format("%s failed on %s (status %d)", what, engine.device()->name, static_cast<int>(status)));
}

}  // namespace

Engine::Engine(const Ops& ops, Device* device, DType type) : ops_(ops), device_(device), type_(type) {
  if (ops.abiHash != abiHash() || device->abiHash != abiHash())
    throw Error(
        code::kUnsupported,
        format("the %s backend was built from other headers than the engine: rebuild both", ops.backend));
  context_.device = device;
  check(*this, device->createStream(device, &context_.stream), "creating a stream");
}

Engine::~Engine() {
  device_->synchronize(device_, context_.stream);
  device_->release(device_, context_.scratch);
  device_->destroyStream(device_, context_.stream);
}

void Engine::reserveScratch(const ScratchLimits& limits) {
  const size_t bytes = ops_.scratchBytes(device_, &limits);
  if (bytes <= context_.scratchBytes) return;
  synchronize();
  device_->release(device_, context_.scratch);
  context_.scratch = nullptr;
  context_.scratchBytes = 0;
  void* scratch = nullptr;
  if (device_->allocate(device_, bytes, &scratch) != kOk)
    throw Error(
        code::kOutOfMemory,
        format("%s has no %zu bytes for the operators' scratch memory: lower the tokens per micro-batch",
               device_->name, bytes));
  context_.scratch = scratch;
  context_.scratchBytes = bytes;
}

void Engine::copy(void* destination, const void* source, size_t bytes) {
  if (bytes > 0)
    check(*this, device_->copyAsync(device_, context_.stream, destination, source, bytes), "a copy");
}

void Engine::zero(void* destination, size_t bytes) {
  if (bytes > 0) check(*this, device_->fillAsync(device_, context_.stream, destination, 0, bytes), "a fill");
}

void Engine::synchronize() {
  check(*this, device_->synchronize(device_, context_.stream), "waiting for the stream");
}

DeviceMemory::DeviceMemory(Engine& engine, size_t bytes, const char* what)
    : device_(engine.device()), bytes_(bytes) {
  if (bytes == 0) return;
  void* memory = nullptr;
  if (device_->allocate(device_, bytes, &memory) != kOk)
    throw Error(code::kOutOfMemory,
                format("%s has no %zu bytes (%.1f MiB) for %s: lower the tokens per micro-batch, use LoRA, "
                       "or free a model",
                       device_->name, bytes, static_cast<double>(bytes) / (1 << 20), what));
  data_ = static_cast<char*>(memory);
}

DeviceMemory::~DeviceMemory() {
  if (data_) device_->release(device_, data_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace rlhf
