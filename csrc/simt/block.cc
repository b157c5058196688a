#include "simt/block.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "core/error.h"
#include "simt/backend.h"
#include "simt/hopper.h"

namespace rlhf::simt {
namespace {

constexpr size_t kGuardBytes = 1024;           // keeps the alignment that shared memory has on a GPU
constexpr size_t kMaxSharedBytes = 227 << 10;  // of a block on sm_90
constexpr int kMaxThreads = 1024;

/// What every launch on this operating-system thread reuses: stacks are costly to map.
struct Resources {
  std::vector<std::unique_ptr<Thread>> threads;
  alignas(1024) unsigned char shared[kGuardBytes + kMaxSharedBytes + kGuardBytes];
};

Resources& resources() {
  static thread_local std::unique_ptr<Resources> instance = std::make_unique<Resources>();
  return *instance;
}

thread_local BlockExecutor* executor = nullptr;
thread_local uint64_t scopedSeed = 0;
thread_local bool hasScopedSeed = false;
thread_local std::vector<std::string> launchLog;  // kernels' names
constexpr size_t kLoggedLaunches = 4096;

uint64_t currentSeed() {
  if (hasScopedSeed) return scopedSeed;
  const char* text = std::getenv("RLHF_SIMT_SEED");
  return text && *text ? std::strtoull(text, nullptr, 10) : 1;
}

/// Of a block on the emulated device.
size_t maxSharedBytes() { return computeCapability() >= 90 ? kMaxSharedBytes : 163 << 10; }

}  // namespace

BlockExecutor& running() {
  require(executor, code::kInternal, "a CUDA primitive was called outside an emulated kernel");
  executor->checkDeadline();
  return *executor;
}

std::string siteName(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return format("%s:%d", slash ? slash + 1 : site.file, site.line);
}

BlockExecutor::BlockExecutor(const char* kernel, Dim3 grid, Dim3 block, size_t sharedBytes, uint64_t seed)
    : kernel_(kernel), grid_(grid), block_(block), sharedBytes_(sharedBytes), seed_(seed), schedule_(seed) {
  require(!executor, code::kInternal, "an emulated kernel launched another one");
  if (block.count() < 1 || block.count() > kMaxThreads) fail(format("%d threads per block, of 1 to %d that are allowed",
                                                                   static_cast<int>(block.count()), kMaxThreads));
  if (sharedBytes > maxSharedBytes())
    fail(format("%zu bytes of shared memory, of %zu that a block has on sm_%d", sharedBytes, maxSharedBytes(), computeCapability()));
  if (grid.count() < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    fail(format("the grid %u x %u x %u is empty or too large", grid.x, grid.y, grid.z));
  auto& threads = resources().threads;
  while (threads.size() < block.count()) threads.push_back(std::make_unique<Thread>());
  catchFaults();
  executor = this;
}

BlockExecutor::~BlockExecutor() { executor = nullptr; }

unsigned char* BlockExecutor::shared() { return resources().shared + kGuardBytes; }

void BlockExecutor::fail(const std::string& what) const {
  throw Error(code::kInternal, format("emulated kernel %s, block (%u, %u, %u), RLHF_SIMT_SEED=%llu: %s", kernel_,
                                      blockIndex_.x, blockIndex_.y, blockIndex_.z,
                                      static_cast<unsigned long long>(seed_), what.c_str()));
}

void BlockExecutor::threadMain(void* argument) {
  auto* thread = static_cast<Thread*>(argument);
  BlockExecutor& self = *executor;
  try {
    self.body_(self.argument_);
    // It would land whenever it likes, in memory that by then is used for something else.
    if (thread->copies.areOnTheirWay()) self.fail(format("%s ended before a cp.async that no wait covered", self.describe(*thread).c_str()));
  } catch (...) {  // leaves the handler before the switch: the list of caught exceptions is the scheduler's too
    self.failure_ = std::current_exception();
  }
  thread->state = Thread::State::Ended;
  --self.live_;
  self.releaseBarrierIfComplete();
  thread->fiber.suspend();
}

void BlockExecutor::leaveAfterFault(Fault fault) {
  try {
    if (fault == Fault::Deadline) failByDeadline();
    const char* what = fault == Fault::Overflow ? "overflows its stack" : "reads or writes outside the arrays";
    fail(format("%s %s", describe(*current_).c_str(), what));
  } catch (...) {
    failure_ = std::current_exception();
  }
  while (true) current_->fiber.suspend();  // not to be resumed: its registers are lost
}

void BlockExecutor::startThreads(Dim3 blockIndex) {
  const int count = static_cast<int>(block_.count());
  const int warps = (count + 31) / 32;
  blockIndex_ = blockIndex;
  blockIdx = blockIndex;
  blockDim = block_;
  gridDim = grid_;
  runnable_.assign(warps, 0);
  rendezvous_.assign(warps, {});
  live_ = count;
  atBarrier_ = 0;
  schedule_.startBlock(warps);
  transactions_.startBlock();
  warpgroups_.startBlock(warps);
  std::memset(resources().shared, AsyncCopies::kPoison, kGuardBytes + sharedBytes_ + kGuardBytes);
  for (int number = 0; number < count; ++number) {
    Thread& thread = *resources().threads[number];
    const uint32_t n = static_cast<uint32_t>(number);
    thread.number = number;
    thread.index = Dim3(n % block_.x, n / block_.x % block_.y, n / block_.x / block_.y);
    thread.copies.clear();
    thread.fiber.start(threadMain, &thread);
    setRunnable(thread);
  }
}

void BlockExecutor::run(Dim3 blockIndex, void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  startThreads(blockIndex);
  while (live_ > 0) {
    const int number = pickThread();
    current_ = resources().threads[number].get();
    runnable_[current_->warp()] &= ~(1u << current_->lane());
    threadIdx = current_->index;
    isInThread_ = true;
    current_->fiber.resume();
    isInThread_ = false;
    if (failure_) std::rethrow_exception(failure_);
    checkDeadline();
  }
  checkGuards();
  transactions_.finishBlock();
  warpgroups_.finishBlock();
}

/// The thread to run next. Copies land at random moments, and else when nobody can go on without them.
int BlockExecutor::pickThread() {
  if (transactions_.hasCopies() && schedule_.chance(1024)) transactions_.landCopy();
  while (true) {
    const int number = schedule_.pick(runnable_);
    if (number >= 0) return number;
    if (!transactions_.hasCopies()) reportDeadlock();
    transactions_.landCopy();
  }
}

void BlockExecutor::waitUntilWoken(const char* waitsFor, Site site) {
  Thread& self = *current_;
  park(Thread::State::Waiting, waitsFor, site);
  self.fiber.suspend();
}

void BlockExecutor::wake(int thread) { setRunnable(*resources().threads[thread]); }

void BlockExecutor::yieldSometimes() {
  if (!schedule_.chance(4)) return;
  Thread& self = *current_;
  schedule_.demoteWarp(self.warp());
  setRunnable(self);
  self.fiber.suspend();
}

void BlockExecutor::setRunnable(Thread& thread) {
  thread.state = Thread::State::Runnable;
  runnable_[thread.warp()] |= 1u << thread.lane();
}

void BlockExecutor::park(Thread::State state, const char* waitsFor, Site site) {
  current_->state = state;
  current_->waitsFor = waitsFor;
  current_->site = site;
}

void BlockExecutor::releaseBarrierIfComplete() {
  if (atBarrier_ == 0 || atBarrier_ < live_) return;
  atBarrier_ = 0;
  for (size_t number = 0; number < block_.count(); ++number) {
    Thread& thread = *resources().threads[number];
    if (thread.state == Thread::State::AtBarrier) setRunnable(thread);
  }
}

void BlockExecutor::barrier(Site site) {
  if (atBarrier_ > 0 && !(barrierSite_ == site))
    fail(format("divergent barrier: %s comes to __syncthreads at %s while others wait in the one at %s",
                describe(*current_).c_str(), siteName(site).c_str(), siteName(barrierSite_).c_str()));
  barrierSite_ = site;
  ++atBarrier_;
  Thread& self = *current_;
  park(Thread::State::AtBarrier, "__syncthreads", site);
  releaseBarrierIfComplete();
  self.fiber.suspend();
}

void BlockExecutor::rendezvous(const WarpOperation& operation, uint32_t mask, void* operands, Site site) {
  Thread& self = *current_;
  const uint32_t bit = 1u << self.lane();
  if (!(mask & bit))
    fail(format("%s runs %s at %s with the mask 0x%08x, which leaves it out", describe(self).c_str(), operation.name,
                siteName(site).c_str(), mask));
  auto& pending = rendezvous_[self.warp()];
  size_t index = 0;
  while (index < pending.size() && !(pending[index].mask & mask)) ++index;
  if (index == pending.size()) pending.push_back({&operation, mask, 0, site, {}});
  Rendezvous& meeting = pending[index];
  if (meeting.operation != &operation || meeting.mask != mask || !(meeting.site == site))
    fail(format("divergent warp: %s runs %s with mask 0x%08x at %s while lanes 0x%08x wait in %s with mask 0x%08x at %s",
                describe(self).c_str(), operation.name, mask, siteName(site).c_str(), meeting.arrived,
                meeting.operation->name, meeting.mask, siteName(meeting.site).c_str()));
  meeting.operands[self.lane()] = operands;
  meeting.arrived |= bit;
  if (meeting.arrived != mask) {
    park(Thread::State::AtRendezvous, operation.name, site);
    self.fiber.suspend();
    return;
  }
  operation.compute(meeting.operands, mask);
  for (int lane = 0; lane < 32; ++lane) {
    if (mask & ~bit & (1u << lane)) setRunnable(*resources().threads[self.warp() * 32 + lane]);
  }
  pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(index));
}

std::string BlockExecutor::describe(const Thread& thread) const {
  return format("warp %d lane %d", thread.warp(), thread.lane());
}

void BlockExecutor::reportDeadlock() const {
  std::map<std::string, std::pair<int, std::string>> waiting;  // what and where → how many, and the first of them
  for (size_t number = 0; number < block_.count(); ++number) {
    const Thread& thread = *resources().threads[number];
    if (thread.state == Thread::State::Ended) continue;
    auto& entry = waiting[format("%s at %s", thread.waitsFor, siteName(thread.site).c_str())];
    if (entry.first++ == 0) entry.second = describe(thread);
  }
  std::string text = format("deadlock: %d threads have ended", static_cast<int>(block_.count()) - live_);
  for (const auto& [where, who] : waiting)
    text += format(", %d (first: %s) wait in %s", who.first, who.second.c_str(), where.c_str());
  fail(text + transactions_.describe());
}

void BlockExecutor::failByDeadline() const {
  fail(format("%s runs, and the launch has taken more than %g s: a loop that does not end?", describe(*current_).c_str(), Deadline::seconds()));
}

void BlockExecutor::checkGuards() const {
  const unsigned char* before = resources().shared;
  const unsigned char* after = before + kGuardBytes + sharedBytes_;
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (before[i] != AsyncCopies::kPoison) fail(format("wrote %zu bytes before its shared memory", kGuardBytes - i));
    if (after[i] != AsyncCopies::kPoison) fail(format("wrote %zu bytes past the end of its shared memory", i));
  }
}

void launchErased(const char* kernel, Dim3 grid, Dim3 block, size_t sharedBytes, void (*body)(void*), void* argument) {
  BlockExecutor execution(kernel, grid, block, sharedBytes, currentSeed());
  logLaunch(kernel);
  for (const uint32_t number : execution.schedule().blockOrder(static_cast<uint32_t>(grid.count())))
    execution.run(Dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y), body, argument);
}

void logLaunch(const char* name) {
  if (launchLog.size() >= kLoggedLaunches) launchLog.clear();
  launchLog.emplace_back(name);
}

std::vector<std::string> takeLaunches() { return std::exchange(launchLog, {}); }

bool isInEmulatedThread() { return executor && executor->isInThread(); }
bool isBehindEmulatedStack(const void* address) { return executor->current().fiber.isBehindStack(address); }
void* topOfEmulatedStack() { return executor->current().fiber.top(); }
void leaveEmulatedThread(Fault fault) { executor->leaveAfterFault(fault); }

unsigned char* sharedMemory() { return running().shared(); }
void blockBarrier(Site site) { running().barrier(site); }

void warpRendezvous(const WarpOperation& operation, uint32_t mask, void* operands, Site site) {
  running().rendezvous(operation, mask, operands, site);
}

void asyncCopy16(void* shared, const void* global, int validBytes, Site site) {
  BlockExecutor& execution = running();
  sharedOffset(shared, AsyncCopies::kBytes, AsyncCopies::kBytes, "cp.async", site);
  if (reinterpret_cast<uintptr_t>(global) % AsyncCopies::kBytes || validBytes < 0 || validBytes > AsyncCopies::kBytes)
    execution.fail(format("cp.async at %s: the source must be aligned to 16 bytes and 0 to 16 of them valid (%d are)",
                          siteName(site).c_str(), validBytes));
  static_cast<void>(*static_cast<const volatile char*>(global));  // an address that must be valid even if nothing is read
  execution.current().copies.issue(shared, global, validBytes);
}

void asyncCopyCommit() { running().current().copies.commit(); }
void asyncCopyWait(int pending) { running().current().copies.wait(pending); }

size_t sharedOffset(const void* address, size_t bytes, size_t alignment, const char* operation, Site site) {
  BlockExecutor& execution = running();
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(execution.shared());
  if (offset > execution.sharedBytes() || execution.sharedBytes() - offset < bytes)
    execution.fail(format("%s at %s: an address outside the block's shared memory", operation, siteName(site).c_str()));
  if (offset % alignment)
    execution.fail(format("%s at %s: the address is not aligned to %zu bytes", operation, siteName(site).c_str(),
                          alignment));
  return offset;
}

ScheduleSeed::ScheduleSeed(uint64_t seed) {
  scopedSeed = seed;
  hasScopedSeed = true;
}
ScheduleSeed::~ScheduleSeed() { hasScopedSeed = false; }

}  // namespace rlhf::simt
