#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rlhf::node {

/// Runs native commands one after another on a thread of its own, so that the event loop stays free, and settles their promises
/// on the event loop. One queue serves all models of an engine: their commands share its threads and scratch memory.
class CommandQueue : public std::enable_shared_from_this<CommandQueue> {
 public:
  static std::shared_ptr<CommandQueue> create(Napi::Env env);
  ~CommandQueue();

  /// work() runs on the queue's thread and its result goes through settle(env, result) on the event loop. What work throws
  /// rejects the promise: an rlhf::Error with its code. Call on the event loop only.
  template <class Work, class Settle>
  Napi::Promise submit(Napi::Env env, Work work, Settle settle) {
    using Result = std::invoke_result_t<Work>;
    auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
    auto result = std::make_shared<Result>();
    push(Command{[work = std::move(work), result]() mutable { *result = work(); },
                 [settle = std::move(settle), result](Napi::Env e) mutable -> Napi::Value { return settle(e, *result); },
                 deferred});
    return deferred->Promise();
  }

  /// Runs work() on the queue's thread after everything submitted before, and waits for it. For short, rare calls only.
  void runAndWait(const std::function<void()>& work);

  /// Drops a reference on the queue's thread, so that what it owns is never freed under a running command.
  void release(std::shared_ptr<void> owned);

  /// Ends the queue's thread after what is queued; nothing may be submitted any more. Call on any thread.
  void close();

  /// A flag that long commands watch; it is also raised when the environment ends.
  std::shared_ptr<std::atomic<bool>> makeCancelFlag();

  /// Calls back on the event loop from the queue's thread; errors thrown by the callback are handed to `onError`.
  void notify(std::function<void(Napi::Env)> callback, std::function<void(const std::string&)> onError);

 private:
  struct Command {
    std::function<void()> work;
    std::function<Napi::Value(Napi::Env)> settle;
    std::shared_ptr<Napi::Promise::Deferred> deferred;  // null: nobody waits
    std::exception_ptr failure = nullptr;
  };
  struct Message {
    Command command;                              // a finished command, or
    std::function<void(Napi::Env)> notification;  // a callback
    std::function<void(const std::string&)> onError;
  };

  struct StopAtEnd {
    std::shared_ptr<CommandQueue> queue;
    void operator()() const { queue->stop(); }
  };

  CommandQueue() = default;
  void push(Command command);
  void loop();
  void stop();
  void deliver(Message message);
  void settle(Napi::Env env, Message& message);
  static void onEventLoop(Napi::Env env, Napi::Function, CommandQueue* queue, Message* message);
  using Channel = Napi::TypedThreadSafeFunction<CommandQueue, Message, onEventLoop>;

  Channel channel_;
  Napi::Env::CleanupHook<StopAtEnd> atEnvironmentEnd_;  // holds the queue
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Command> commands_;
  std::vector<std::weak_ptr<std::atomic<bool>>> cancelFlags_;
  bool stopping_ = false;
  int64_t waiting_ = 0;  // promises not settled yet; event loop only
};

/// A JavaScript Error with `code` for what a command threw.
Napi::Error toNapiError(Napi::Env env, const std::exception_ptr& failure);

}  // namespace rlhf::node
