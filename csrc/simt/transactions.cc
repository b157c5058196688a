#include "simt/transactions.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "simt/block.h"
#include "simt/hopper.h"

namespace rlhf::simt {
namespace {

constexpr uint64_t kInBarrier = 0x6d62617272696572;  // what a barrier's memory holds: nobody else may write there
constexpr int kMaxBarrierBytes = (1 << 20) - 1;
constexpr size_t kPatternBytes = 1024, kRowBytes = 128;  // of a swizzle, which goes by the address

/// A 128-byte swizzle of an address.
size_t swizzled(size_t address) { return address ^ ((address >> 7 & 7) << 4); }

}  // namespace

TensorMap makeTensorMap(const void* data, int64_t rows, int64_t cols, int64_t stride, int boxCols, int boxRows, Swizzle swizzle) {
  const int64_t strideBytes = 2 * stride;
  const bool isValid = reinterpret_cast<uintptr_t>(data) % 16 == 0 && rows >= 1 && cols >= 1 && rows <= int64_t{1} << 32 &&
                       cols <= int64_t{1} << 32 && strideBytes % 16 == 0 && strideBytes < int64_t{1} << 40 && boxCols >= 1 &&
                       boxCols <= 256 && boxRows >= 1 && boxRows <= 256 && 2 * boxCols % 16 == 0 &&
                       (swizzle == Swizzle::None || 2 * boxCols <= 128);
  if (!isValid)
    throw Error(code::kInternal, format("a tensor map of %lld × %lld elements, rows %lld apart, boxes of %d × %d: not aligned or too large",
                                        static_cast<long long>(rows), static_cast<long long>(cols), static_cast<long long>(stride),
                                        boxRows, boxCols));
  return {static_cast<const char*>(data), rows, 1, cols, strideBytes, 0, boxCols, boxRows, swizzle};
}

TensorMap makeHeadMap(const void* data, int64_t rows, int64_t heads, int64_t cols, int64_t stride, int boxCols, int boxRows, Swizzle swizzle) {
  if (2 * cols % 16 != 0) throw Error(code::kInternal, format("a tensor map of heads of %lld: not aligned", static_cast<long long>(cols)));
  TensorMap map = makeTensorMap(data, rows, cols, stride, boxCols, boxRows, swizzle);
  map.heads = heads;
  map.headBytes = 2 * cols;
  return map;
}

size_t Transactions::Copy::bytes() const { return static_cast<size_t>(2 * map.boxCols * map.boxRows); }

void Transactions::startBlock() {
  barriers_.clear();
  copies_.clear();
  for (Named& each : named_) each = {};
}

void Transactions::finishBlock() const {
  if (!copies_.empty())
    block_.fail(format("the block ended before its copy of a box at %s had landed", siteName(copies_.front().site).c_str()));
  for (const auto& [offset, barrier] : barriers_)
    if (barrier.bytes != 0)
      block_.fail(format("the transaction barrier at byte %zu ends with %lld bytes expected and not copied", offset,
                         static_cast<long long>(barrier.bytes)));
}

void Transactions::init(uint64_t* barrier, int arrivals, Site site) {
  const size_t offset = sharedOffset(barrier, sizeof *barrier, 8, "mbarrier.init", site);
  if (barriers_.contains(offset)) block_.fail(format("mbarrier.init at %s: there is a barrier already", siteName(site).c_str()));
  if (arrivals < 1 || arrivals > kMaxBarrierBytes) block_.fail(format("mbarrier.init at %s: %d arrivals", siteName(site).c_str(), arrivals));
  barriers_[offset] = {arrivals, arrivals, 0, 0, false, {}};
  std::memcpy(barrier, &kInBarrier, sizeof kInBarrier);
}

void Transactions::publish() {
  for (auto& [offset, barrier] : barriers_) barrier.isPublished = true;
}

Transactions::Barrier& Transactions::find(uint64_t* barrier, const char* operation, Site site) {
  const size_t offset = sharedOffset(barrier, sizeof *barrier, 8, operation, site);
  const auto found = barriers_.find(offset);
  if (found == barriers_.end() || std::memcmp(barrier, &kInBarrier, sizeof kInBarrier) != 0)
    block_.fail(format("%s at %s: no transaction barrier is there (not yet, or it was overwritten)", operation, siteName(site).c_str()));
  return found->second;
}

void Transactions::endPhaseIfComplete(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  for (const int thread : barrier.waiting) block_.wake(thread);  // each looks for its parity again
  barrier.waiting.clear();
}

void Transactions::arrive(uint64_t* address, int expectedBytes, Site site) {
  Barrier& barrier = find(address, "mbarrier.arrive", site);
  barrier.bytes += expectedBytes;
  if (expectedBytes < 0 || barrier.bytes > kMaxBarrierBytes)
    block_.fail(format("mbarrier.arrive at %s: %lld bytes expected", siteName(site).c_str(), static_cast<long long>(barrier.bytes)));
  if (barrier.pending == 0) block_.fail(format("mbarrier.arrive at %s: more arrivals than the phase has", siteName(site).c_str()));
  --barrier.pending;
  endPhaseIfComplete(barrier);
  block_.yieldSometimes();
}

void Transactions::wait(uint64_t* address, int parity, Site site) {
  block_.yieldSometimes();
  while (true) {
    Barrier& barrier = find(address, "mbarrier.try_wait", site);
    if ((barrier.phase & 1u) != static_cast<uint32_t>(parity)) return;
    barrier.waiting.push_back(block_.current().number);
    block_.waitUntilWoken("mbarrier.try_wait", site);
  }
}

void Transactions::copy(void* shared, const TensorMap& map, const BoxPlace& place, uint64_t* barrier, Site site) {
  Copy copy{0, map, place, sharedOffset(barrier, sizeof *barrier, 8, "a copy of a box", site), site};
  const size_t alignment = copy.bytes() < kPatternBytes ? kRowBytes : kPatternBytes;
  copy.destination = sharedOffset(shared, copy.bytes(), alignment, "a copy of a box", site);
  if (!find(barrier, "a copy of a box", site).isPublished)
    block_.fail(format("a copy of a box at %s: its barrier was not published (fence.mbarrier_init)", siteName(site).c_str()));
  if (map.swizzle == Swizzle::Bytes128 && map.boxCols != 64)
    block_.fail(format("a copy of a box at %s: boxes narrower than the swizzle are not modelled", siteName(site).c_str()));
  for (const Copy& other : copies_)
    if (copy.destination < other.destination + other.bytes() && other.destination < copy.destination + copy.bytes())
      block_.fail(format("a copy of a box at %s: that of %s is still on its way to the same bytes", siteName(site).c_str(),
                         siteName(other.site).c_str()));
  std::memset(shared, AsyncCopies::kPoison, copy.bytes());
  copies_.push_back(copy);
  if (block_.schedule().chance(8)) landCopy();
}

void Transactions::landCopy() {
  const size_t index = block_.schedule().below(copies_.size());
  const Copy copy = copies_[index];
  copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(index));
  land(copy);
  Barrier& barrier = barriers_.at(copy.barrier);
  barrier.bytes -= static_cast<int64_t>(copy.bytes());
  endPhaseIfComplete(barrier);
}

void Transactions::land(const Copy& copy) {
  const TensorMap& map = copy.map;
  for (int row = 0; row < map.boxRows; ++row) {
    for (int col = 0; col < map.boxCols; ++col) {
      const int64_t sourceRow = int64_t{copy.place.row} + row, sourceCol = int64_t{copy.place.col} + col;
      uint16_t element = 0;
      if (sourceRow >= 0 && sourceRow < map.rows && sourceCol >= 0 && sourceCol < map.cols && copy.place.head < map.heads)
        std::memcpy(&element, map.data + sourceRow * map.strideBytes + copy.place.head * map.headBytes + 2 * sourceCol, sizeof element);
      const size_t plain = copy.destination + 2 * static_cast<size_t>(row * map.boxCols + col);
      std::memcpy(block_.shared() + (map.swizzle == Swizzle::Bytes128 ? swizzled(plain) : plain), &element, sizeof element);
    }
  }
}

void Transactions::named(int name, int threads, Site site) {
  if (name < 1 || name > 15 || threads < 32 || threads % 32)
    block_.fail(format("bar.sync at %s: barrier %d of %d threads", siteName(site).c_str(), name, threads));
  Named& barrier = named_[name];
  if (!barrier.waiting.empty() && barrier.threads != threads)
    block_.fail(format("bar.sync at %s: %d threads, where others wait for %d", siteName(site).c_str(), threads, barrier.threads));
  barrier.threads = threads;
  barrier.waiting.push_back(block_.current().number);
  if (static_cast<int>(barrier.waiting.size()) < threads) return block_.waitUntilWoken("bar.sync", site);
  barrier.waiting.pop_back();
  for (const int thread : barrier.waiting) block_.wake(thread);
  barrier.waiting.clear();
}

std::string Transactions::describe() const {
  std::string text;
  for (const auto& [offset, barrier] : barriers_)
    if (!barrier.waiting.empty())
      text += format("; the transaction barrier at byte %zu is in phase %u, %d arrivals and %lld bytes from its end", offset,
                     barrier.phase, barrier.pending, static_cast<long long>(barrier.bytes));
  return text;
}

}  // namespace rlhf::simt
