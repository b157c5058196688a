#include "model/engine.h"

#include <utility>

#include "ops/planning.h"

namespace rlhf {
namespace {

void check(const Engine& engine, Status status, const char* what) {
  if (status == kOk) return;
  const char* code = status == kNoMemory ? code::kOutOfMemory : code::kInternal;
  const Device& device = *engine.device();
  throw Error(code, format("%s failed on %s (status %d)%s%s", what, device.name, static_cast<int>(status), *device.error ? ": " : "",
                           device.error));
}

/// Throws Error where memory was refused for another reason than that there is none: after a kernel has failed a device refuses everything.
void requireMemoryAlone(const Engine& engine, Status status) {
  if (status != kNoMemory) check(engine, status, "taking memory (what was queued before it may be what failed)");
}

}  // namespace

std::shared_ptr<Engine> Engine::planning(const Ops& ops, const Device& device, DType type, DType compute) {
  return std::shared_ptr<Engine>(new Engine(planningOps(ops), std::make_unique<Device>(planningDevice(device)), type, compute));
}

Engine::Engine(const Ops& ops, std::unique_ptr<Device> planningDevice, DType type, DType compute)
    : Engine(ops, planningDevice.get(), type, compute) {
  planningDevice_ = std::move(planningDevice);
}

Engine::Engine(const Ops& ops, Device* device, DType type, DType compute)
    : ops_(ops), device_(device), type_(type), compute_(compute) {
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
  blocks_.empty([this](char* block) { device_->release(device_, block); });
  device_->destroyStream(device_, context_.stream);
}

void Engine::reserveScratch(const ScratchLimits& limits) {
  const size_t bytes = ops_.scratchBytes(device_, &limits);
  if (bytes <= context_.scratchBytes) return;
  synchronize();
  device_->release(device_, context_.scratch);
  context_.scratch = nullptr;
  ledger_.give(MemoryUse::Scratch, std::exchange(context_.scratchBytes, 0));
  ledger_.take(MemoryUse::Scratch, bytes, "the operators' scratch memory");
  void* scratch = nullptr;
  if (const Status status = allocate(bytes, &scratch)) {
    ledger_.give(MemoryUse::Scratch, bytes);
    requireMemoryAlone(*this, status);
    throw Error(
        code::kOutOfMemory,
        format("%s has no %zu bytes for the operators' scratch memory: lower the tokens per micro-batch",
               device_->name, bytes));
  }
  context_.scratch = scratch;
  context_.scratchBytes = bytes;
}

Status Engine::allocate(size_t bytes, void** out) {
  ++allocations_;
  return device_->allocate(device_, bytes, out);
}

void Engine::copy(void* destination, const void* source, size_t bytes) {
  if (trace_) trace_->add('c', destination, source, bytes);
  else if (bytes > 0)
    check(*this, device_->copyAsync(device_, context_.stream, destination, source, bytes), "a copy");
}

void Engine::upload(void* destination, const void* source, size_t bytes) {
  copy(destination, source, bytes);
  if (bytes > 0) uploads_.add(bytes);
}

void Engine::download(void* destination, const void* source, size_t bytes) {
  copy(destination, source, bytes);
  if (bytes > 0) downloads_.add(bytes);
}

void Engine::zero(void* destination, size_t bytes) {
  if (trace_) trace_->add('z', destination, bytes);
  else if (bytes > 0) check(*this, device_->fillAsync(device_, context_.stream, destination, 0, bytes), "a fill");
}

void Engine::synchronize() {
  check(*this, device_->synchronize(device_, context_.stream), "waiting for the stream");
}

DeviceMemory::DeviceMemory(Engine& engine, MemoryUse use, size_t bytes, const char* what)
    : engine_(&engine), use_(use), bytes_(bytes), block_(use == MemoryUse::Arrays ? BlockCache::blockBytes(bytes) : 0) {
  if (bytes == 0) return;
  engine.ledger().take(use, taken(), what);
  if (block_ > 0) data_ = engine.blocks().take(block_);
  if (data_) return;
  void* memory = nullptr;
  if (const Status status = engine.allocate(taken(), &memory)) {
    engine.ledger().give(use, taken());
    requireMemoryAlone(engine, status);
    throw Error(code::kOutOfMemory,
                format("%s has no %zu bytes (%.1f MiB) for %s: lower the tokens per micro-batch, use LoRA, "
                       "or free a model",
                       engine.device()->name, bytes, static_cast<double>(bytes) / (1 << 20), what));
  }
  data_ = static_cast<char*>(memory);
}

DeviceMemory::~DeviceMemory() {
  if (!data_) return;
  if (block_ > 0)
    engine_->blocks().keep(data_, block_);
  else
    engine_->device()->release(engine_->device(), data_);
  engine_->ledger().give(use_, taken());
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : engine_(other.engine_),
      use_(other.use_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      block_(std::exchange(other.block_, 0)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(engine_, other.engine_);
  std::swap(use_, other.use_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(block_, other.block_);
  return *this;
}

}  // namespace rlhf
