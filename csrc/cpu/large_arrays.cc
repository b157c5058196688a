#include "cpu/large_arrays.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "core/arena.h"
#include "ops/host_device.h"

namespace rlhf::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = size_t{4} << 10;

/// The sizes of the process's large arrays by where they begin; all devices share it.
class Sizes {
 public:
  void add(void* memory, size_t bytes) {
    const std::lock_guard lock(mutex_);
    sizes_[memory] = bytes;
  }
  /// 0 for an array that is not a large one.
  size_t remove(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(memory);
    if (found == sizes_.end()) return 0;
    const size_t bytes = found->second;
    sizes_.erase(found);
    return bytes;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;
};

Sizes& sizes() {
  static Sizes all;
  return all;
}

const Device& heap() {
  static const Device device = makeHostDevice("cpu");
  return device;
}

Status allocate(Device* device, size_t bytes, void** out) {
  if (bytes < 2 * kHugePage) return heap().allocate(device, bytes, out);
  if (bytes > SIZE_MAX / 2) return kNoMemory;
  const size_t size = alignUp(bytes, kPage), mapped = size + kHugePage;
  void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return kNoMemory;
  char* const begin = static_cast<char*>(memory);
  const size_t before = alignUp(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
  if (before > 0) munmap(begin, before);
  if (mapped - before > size) munmap(begin + before + size, mapped - before - size);
  // Advice: works as well, only slower, if refused. What is no whole huge page stays in small ones, which take no more than is used.
  madvise(begin + before, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  sizes().add(begin + before, size);
  *out = begin + before;
  return kOk;
}

void release(Device* device, void* memory) {
  const size_t size = sizes().remove(memory);
  if (size > 0) munmap(memory, size);
  else heap().release(device, memory);
}

}  // namespace

void useLargeArrays(Device& device) {
  device.allocate = allocate;
  device.release = release;
}

}  // namespace rlhf::cpu

#else

namespace rlhf::cpu {
void useLargeArrays(Device&) {}
}  // namespace rlhf::cpu

#endif
