#include "simt/separate_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
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

char* SeparateMemory::pagesOf(char* begin) { return begin - reinterpret_cast<uintptr_t>(begin) % pageBytes(); }

Status SeparateMemory::allocate(size_t bytes, void** out) {
  const size_t pages = wholePages(bytes);
  void* mapping = mmap(nullptr, pages + 2 * pageBytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return kNoMemory;
  const char* fence = std::getenv("RLHF_SIMT_FENCE");
  const bool endsPage = fence && std::strcmp(fence, "after") == 0;
  char* const memory = static_cast<char*>(mapping) + pageBytes() + (endsPage && bytes > 0 ? pages - bytes : 0);
  allocations_[memory] = bytes;
  const Access access(*this);
  std::memset(memory, 0xff, bytes);  // NaN: contents are undefined, and shall not look like zeros
  *out = memory;
  return kOk;
}

void SeparateMemory::release(void* memory) {
  const auto found = allocations_.find(static_cast<char*>(memory));
  if (found == allocations_.end()) return;
  munmap(pagesOf(found->first) - pageBytes(), wholePages(found->second) + 2 * pageBytes());
  allocations_.erase(found);
}

size_t SeparateMemory::held() const {
  size_t bytes = 0;
  for (const auto& [begin, size] : allocations_) bytes += size;
  return bytes;
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
  for (const auto& [begin, bytes] : allocations_) mprotect(pagesOf(begin), wholePages(bytes), protection);
}

}  // namespace rlhf::simt
