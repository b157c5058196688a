#pragma once
#include <atomic>
#include <cstddef>
#include <memory>

#include "core/arena.h"
#include "core/memory_ledger.h"
#include "model/block_cache.h"
#include "model/command_trace.h"
#include "ops/entry.h"

namespace rlhf {

/// Copies between host and device so far.
struct CopyCount {
  std::atomic<size_t> count{0}, bytes{0};

  void add(size_t copied) { ++count, bytes += copied; }
};

/// A backend in use: its operator table, its device, the stream that commands queue on, and scratch memory.
/// `type` is the type of activations and of parameters as ops read them (F32 on the CPU, also BF16 and F16 on CUDA; F64 or C128 on the oracle
/// for gradient checks), `compute` that of a transformer's matrix products where their factors are wider (ops/linear.h).
class Engine {
 public:
  Engine(const Ops& ops, Device* device, DType type, DType compute = DType::F32);
  /// An engine that lays memory out as one on `device` would, and neither takes it nor computes: its ledger is the estimate.
  static std::shared_ptr<Engine> planning(const Ops& ops, const Device& device, DType type, DType compute = DType::F32);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Ops& ops() const { return ops_; }
  Device* device() const { return device_; }
  OpContext& context() { return context_; }
  DType type() const { return type_; }
  DType compute() const { return compute_; }
  DType accumulator() const { return accumulatorType(type_); }
  bool plans() const { return planningDevice_ != nullptr; }
  MemoryLedger& ledger() { return ledger_; }
  BlockCache& blocks() { return blocks_; }
  /// How often memory of the device was taken so far.
  size_t allocations() const { return allocations_; }
  const CopyCount& uploads() const { return uploads_; }
  const CopyCount& downloads() const { return downloads_; }

  /// Grows the scratch memory so that every op within `limits` can run.
  void reserveScratch(const ScratchLimits& limits);

  template <class Arguments>
  void run(Status (*op)(OpContext*, const Arguments*), const Arguments& arguments) {
    if (trace_) trace_->add(op, arguments);
    else runOp(context_, op, arguments);
  }
  /// What `commands` would queue, of which nothing is.
  template <class Commands>
  CommandTrace trace(Commands&& commands) {
    struct Ending {
      Engine& engine;
      ~Ending() { engine.trace_ = nullptr; }
    };
    CommandTrace trace;
    {
      const Ending ending{*this};
      trace_ = &trace;
      commands();
    }
    trace.add(context_.scratch, context_.scratchBytes);
    return trace;
  }
  // In stream order:
  void copy(void* destination, const void* source, size_t bytes);      // within the device
  void upload(void* destination, const void* source, size_t bytes);    // from the host, whose memory may go when this has returned
  void download(void* destination, const void* source, size_t bytes);  // to the host, where it is after synchronize()
  void zero(void* destination, size_t bytes);
  void synchronize();
  /// Device::allocate, counted.
  Status allocate(size_t bytes, void** out);

 private:
  Engine(const Ops& ops, std::unique_ptr<Device> planningDevice, DType type, DType compute);

  const Ops ops_;
  std::unique_ptr<Device> planningDevice_;
  Device* device_;
  MemoryLedger ledger_;
  BlockCache blocks_;
  std::atomic<size_t> allocations_{0};
  CopyCount uploads_, downloads_;
  DType type_, compute_;
  OpContext context_;
  CommandTrace* trace_ = nullptr;  // while commands are traced
};

/// Device memory with an owner, counted in the engine's ledger. Small arrays come from the engine's blocks and go back there. Throws
/// Error(ERR_RLHF_MEMORY) that names `what` and the bytes asked for. The engine must outlive it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Engine& engine, MemoryUse use, size_t bytes, const char* what);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  MemoryUse use() const { return use_; }

 private:
  size_t taken() const { return block_ > 0 ? block_ : bytes_; }

  Engine* engine_ = nullptr;
  MemoryUse use_ = MemoryUse::Arrays;
  char* data_ = nullptr;
  size_t bytes_ = 0;
  size_t block_ = 0;  // size of the block it is; 0: it is none
};

}  // namespace rlhf
