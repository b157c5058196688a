#pragma once
#include <cstddef>
#include <map>

#include "ops/context.h"

namespace rlhf::simt {

/// Memory that the host can neither read nor write but while the device does its own work, as is that of a GPU. Pages that nobody may
/// touch lie before and behind each allocation, which begins where its first page does; with RLHF_SIMT_FENCE=after it ends where its last
/// page does, and is aligned no more than that leaves it.
class SeparateMemory {
 public:
  Status allocate(size_t bytes, void** out);
  void release(void* memory);

  /// What is allocated now.
  size_t held() const;

  /// Whether `bytes` from an address on lie in one allocation.
  bool holds(const void* address, size_t bytes) const;

  /// Lets the device at its memory from here to the end of the scope.
  class Access {
   public:
    explicit Access(SeparateMemory& memory) : memory_(memory) { memory_.open(); }
    ~Access() { memory_.close(); }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    SeparateMemory& memory_;
  };

 private:
  void open();
  void close();
  void protectAll(int protection) const;
  static char* pagesOf(char* begin);

  std::map<char*, size_t> allocations_;  // bytes that were asked for, by address
  int accesses_ = 0;
};

}  // namespace rlhf::simt
