#include "simt/separate_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/arena.h"

namespace rlhf::simt {
namespace {

size_t pageBytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t wholePages(size_t bytes) { return alignUp(std::max<size_t>(bytes, 1), pageBytes()); }

}  // namespace

Status SeparateMemory::allocate(size_t bytes, void** out) {
  // The page behind it is nobody's, so that no allocation begins where another ends.
  void* memory = mmap(nullptr, wholePages(bytes) + pageBytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return kNoMemory;
  allocations_[static_cast<char*>(memory)] = bytes;
  const Access access(*this);
  std::memset(memory, 0xff, bytes);  // NaN: contents are undefined, and shall not look like zeros
  *out = memory;
  return kOk;
}

void SeparateMemory::release(void* memory) {
  const auto found = allocations_.find(static_cast<char*>(memory));
  if (found == allocations_.end()) return;
  munmap(memory, wholePages(found->second) + pageBytes());
  allocations_.erase(found);
}

bool SeparateMemory::holds(const void* address, size_t bytes) const {
  const auto* first = static_cast<const char*>(address);
  for (const auto& [begin, size] : allocations_)
    if (begin <= first && first + bytes <= begin + size) return true;
  return false;
}

void SeparateMemory::open() {
  protectAll(PROT_READ | PROT_WRITE);
  ++accesses_;
}

void SeparateMemory::close() {
  if (--accesses_ == 0) protectAll(PROT_NONE);
}

void SeparateMemory::protectAll(int protection) const {
  for (const auto& [begin, bytes] : allocations_) mprotect(begin, wholePages(bytes), protection);
}

}  // namespace rlhf::simt
