#include "node/command_queue.h"

#include <future>

#include "core/error.h"

namespace rlhf::node {

Napi::Error toNapiError(Napi::Env env, const std::exception_ptr& failure) {
  const char* code = code::kInternal;
  std::string message = "unknown native failure";
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  } catch (const std::bad_alloc&) {
    code = code::kOutOfMemory;
    message = "the process is out of memory; lower microBatchTokens, batchSize or the model's size";
  } catch (const std::exception& error) {
    message = error.what();
  }
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("code", Napi::String::New(env, code));
  return result;
}

std::shared_ptr<CommandQueue> CommandQueue::create(Napi::Env env) {
  std::shared_ptr<CommandQueue> queue(new CommandQueue());
  queue->channel_ = Channel::New(env, "node-rlhf commands", 0, 1, queue.get());
  queue->channel_.Unref(env);  // an idle queue does not keep the process alive
  queue->thread_ = std::thread([raw = queue.get()] { raw->loop(); });
  // At the environment's end the thread is joined before the channel goes away.
  queue->atEnvironmentEnd_ = env.AddCleanupHook(StopAtEnd{queue});
  return queue;
}

CommandQueue::~CommandQueue() { stop(); }

void CommandQueue::stop() {
  std::deque<Command> dropped;  // what these hold may be in use until the running command ends
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    dropped.swap(commands_);
    for (const auto& flag : cancelFlags_)
      if (const auto alive = flag.lock()) alive->store(true);
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  channel_.Abort();
}

void CommandQueue::push(Command command) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) throw Error(code::kDisposed, "the engine has been shut down");
    if (command.deferred && waiting_++ == 0) channel_.Ref(command.deferred->Env());
    commands_.push_back(std::move(command));
  }
  changed_.notify_one();
}

void CommandQueue::runAndWait(const std::function<void()>& work) {
  std::promise<void> done;
  push(Command{[&] {
                 try {
                   work();
                   done.set_value();
                 } catch (...) {
                   done.set_exception(std::current_exception());
                 }
               },
               nullptr, nullptr});
  done.get_future().get();
}

void CommandQueue::release(std::shared_ptr<void> owned) {
  if (!owned) return;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;  // the thread is gone: freeing here is safe
    commands_.push_back(Command{[owned = std::move(owned)]() mutable { owned.reset(); }, nullptr, nullptr});
  }
  changed_.notify_one();
}

void CommandQueue::close() {
  const auto stopOnEventLoop = [this] {
    notify(
        [queue = shared_from_this()](Napi::Env env) {
          queue->atEnvironmentEnd_.Remove(env);
          queue->stop();
        },
        nullptr);
  };
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    commands_.push_back(Command{stopOnEventLoop, nullptr, nullptr});
  }
  changed_.notify_one();
}

std::shared_ptr<std::atomic<bool>> CommandQueue::makeCancelFlag() {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  std::lock_guard lock(mutex_);
  std::erase_if(cancelFlags_, [](const auto& old) { return old.expired(); });
  cancelFlags_.push_back(flag);
  return flag;
}

void CommandQueue::notify(std::function<void(Napi::Env)> callback, std::function<void(const std::string&)> onError) {
  deliver(Message{{}, std::move(callback), std::move(onError)});
}

void CommandQueue::loop() {
  for (;;) {
    Command command;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !commands_.empty(); });
      if (stopping_) return;
      command = std::move(commands_.front());
      commands_.pop_front();
    }
    try {
      command.work();
    } catch (...) {
      command.failure = std::current_exception();
    }
    command.work = nullptr;  // frees the native objects it held, here where no other command runs
    if (command.deferred) deliver(Message{std::move(command), nullptr, nullptr});
  }
}

void CommandQueue::deliver(Message message) {
  auto* owned = new Message(std::move(message));
  if (channel_.NonBlockingCall(owned) != napi_ok) delete owned;  // the environment is ending
}

void CommandQueue::onEventLoop(Napi::Env env, Napi::Function, CommandQueue* queue, Message* message) {
  std::unique_ptr<Message> owned(message);
  if (env == nullptr) return;
  Napi::HandleScope scope(env);
  // Calling into JavaScript while its thread is being terminated throws; an exception must not leave this function.
  try {
    queue->settle(env, *owned);
  } catch (const Napi::Error& error) {
    if (owned->onError) owned->onError(error.Message());
  } catch (const std::exception& error) {
    if (owned->onError) owned->onError(error.what());
  }
}

void CommandQueue::settle(Napi::Env env, Message& message) {
  if (message.notification) return message.notification(env);
  Command& command = message.command;
  if (--waiting_ == 0) channel_.Unref(env);
  if (command.failure) {
    command.deferred->Reject(toNapiError(env, command.failure).Value());
    return;
  }
  try {
    command.deferred->Resolve(command.settle(env));
  } catch (const Napi::Error& error) {
    command.deferred->Reject(error.Value());
  } catch (...) {
    command.deferred->Reject(toNapiError(env, std::current_exception()).Value());
  }
}

}  // namespace rlhf::node
