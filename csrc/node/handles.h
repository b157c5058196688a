#pragma once
#include <napi.h>

#include <memory>
#include <mutex>
#include <string>

#include "cpu/backend.h"
#include "model/model.h"
#include "node/arguments.h"
#include "node/command_queue.h"

// One wrapper per JavaScript class. Native objects are held by shared_ptr, so that a command that is running outlives dispose(), and
// are let go on the queue's thread, where no other command can be using them.

namespace rlhf::node {

/// What the classes of one environment share.
struct AddonData {
  Napi::FunctionReference engine, model, pass, array, optimizer;
};

/// A device in use with its command queue, which ends with it.
struct EngineHandle {
  std::shared_ptr<Device> device;
  int threads = 0;  // of the CPU's pool; 0 on other devices
  std::shared_ptr<Engine> engine;  // uses the device, so it goes first
  std::shared_ptr<CommandQueue> queue;

  ~EngineHandle() {
    engine.reset();
    if (queue) queue->close();
  }
};

struct ModelHandle {
  std::shared_ptr<EngineHandle> engine;
  std::shared_ptr<Model> model;

  /// The parameters as the last command that changed their list left them: asking for them waits for no command.
  std::vector<ParameterInfo> parameters() const {
    std::lock_guard lock(mutex_);
    return parameters_;
  }
  /// Call in a command.
  void noteParameters() {
    std::vector<ParameterInfo> now = model->parameters();
    std::lock_guard lock(mutex_);
    parameters_ = std::move(now);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<ParameterInfo> parameters_;
};

struct PassHandle {
  std::shared_ptr<ModelHandle> model;
  std::unique_ptr<Pass> pass;
  bool consumed = false;  // by backward; event loop only
};

/// An array of float32 on the device: one of a pass's outputs, or the result of an operation on arrays.
struct ArrayHandle {
  std::shared_ptr<EngineHandle> engine;
  std::shared_ptr<DeviceMemory> memory;  // null for a pass's output
  std::shared_ptr<PassHandle> pass;
  const void* data = nullptr;
  int64_t length = 0;
};

/// The base of all wrappers: type-tagged, so that an object of another class (or a forged one) is refused; disposable.
template <class Wrapper, class Handle>
class HandleWrap : public Napi::ObjectWrap<Wrapper> {
 public:
  explicit HandleWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Wrapper>(info) {
    this->Value().TypeTag(&Wrapper::kTag);
  }
  ~HandleWrap() override { drop(); }

  static Wrapper& unwrap(Napi::Value value, const char* name) {
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&Wrapper::kTag))
      throwArgument(format("%s must be of this package's class %s", name, Wrapper::kName));
    return *Napi::ObjectWrap<Wrapper>::Unwrap(value.As<Napi::Object>());
  }

  /// What ObjectWrap calls for `this`. Its own version trusts that the object is a Wrapper, which a getter taken from one class and
  /// called on an object of another is not.
  static Wrapper* Unwrap(Napi::Object object) {
    Wrapper* wrapper = nullptr;
    guarded(object.Env(), [&] {
      wrapper = &unwrap(object, "this");
      return Napi::Value();
    });
    return wrapper;
  }

  /// The native object. Throws ERR_RLHF_DISPOSED after dispose().
  const std::shared_ptr<Handle>& handle() const {
    if (!handle_) throw Error(code::kDisposed, std::string("this ") + Wrapper::kName + " has been disposed");
    return handle_;
  }

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    drop();
    return info.Env().Undefined();
  }

 protected:
  /// `bytes`: what the handle holds outside of JavaScript's heap. Without them the garbage collector sees a small object, and has
  /// no reason to look for those that nobody uses any more and nobody disposed.
  void set(std::shared_ptr<Handle> handle, std::shared_ptr<CommandQueue> queue, int64_t bytes = 0) {
    handle_ = std::move(handle);
    queue_ = std::move(queue);
    bytes_ = bytes;
    tellCollector(bytes_);
  }

 private:
  void drop() {
    if (queue_ && handle_) queue_->release(std::move(handle_));
    handle_ = nullptr;
    tellCollector(-bytes_);
    bytes_ = 0;
  }

  void tellCollector(int64_t change) {
    if (change != 0) Napi::MemoryManagement::AdjustExternalMemory(this->Env(), change);
  }

  std::shared_ptr<Handle> handle_;
  std::shared_ptr<CommandQueue> queue_;
  int64_t bytes_ = 0;
};

/// Makes a wrapper around `handle`: the class's constructor takes it as an External.
template <class Handle>
Napi::Object wrap(Napi::Env env, const Napi::FunctionReference& constructor, std::shared_ptr<Handle> handle) {
  return constructor.New({Napi::External<std::shared_ptr<Handle>>::New(env, &handle)});
}

/// The handle that `wrap` passed. A JavaScript caller has no External, so these classes cannot be constructed from outside.
template <class Handle>
std::shared_ptr<Handle> handleFrom(const Napi::CallbackInfo& info, const char* name) {
  std::shared_ptr<Handle> handle;
  guarded(info.Env(), [&] {
    if (!info[0].IsExternal()) throwArgument(format("%s cannot be constructed directly", name));
    handle = *info[0].As<Napi::External<std::shared_ptr<Handle>>>().Data();
    return Napi::Value();
  });
  return handle;
}

/// A Float32Array, of which a copy is made, or a DeviceArray as input of a command: its memory where the engine's device can read it.
class ArrayInput {
 public:
  /// Undefined and null give an absent input where `required` is false. `length` < 0 accepts any length.
  ArrayInput(Napi::Value value, const char* name, int64_t length, bool required);
  bool present() const { return host_ || array_; }
  int64_t length() const { return length_; }
  /// Call inside the command only. Copies to the device if it cannot read the process's memory.
  const void* on(EngineHandle& engine);

 private:
  Floats host_;
  std::shared_ptr<ArrayHandle> array_;
  DeviceMemory copy_;
  int64_t length_ = 0;
};

/// A new array of `length` float32 on the engine's device; call inside a command.
std::shared_ptr<ArrayHandle> makeArray(const std::shared_ptr<EngineHandle>& engine, int64_t length);

void defineEngine(Napi::Env env, Napi::Object exports, AddonData& data);
void defineModel(Napi::Env env, Napi::Object exports, AddonData& data);
void definePass(Napi::Env env, Napi::Object exports, AddonData& data);
void defineArray(Napi::Env env, Napi::Object exports, AddonData& data);
void defineOptimizer(Napi::Env env, Napi::Object exports, AddonData& data);
void defineLosses(Napi::Env env, Napi::Object exports);
void definePreferenceLosses(Napi::Env env, Napi::Object exports);
void defineMlp(Napi::Env env, Napi::Object exports);

}  // namespace rlhf::node
