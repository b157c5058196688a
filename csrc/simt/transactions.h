#pragma once
#include <map>
#include <string>
#include <vector>

#include "simt/execution.h"
#include "simt/tensor_map.h"

namespace rlhf::simt {

class BlockExecutor;

/// One block's mbarriers, its copies by TMA and its named barriers.
class Transactions {
 public:
  explicit Transactions(BlockExecutor& block) : block_(block) {}

  void startBlock();
  /// Throws Error for copies in flight and bytes that were expected, or copied, and have no counterpart.
  void finishBlock() const;

  void init(uint64_t* barrier, int arrivals, Site site);
  void publish();
  void arrive(uint64_t* barrier, int expectedBytes, Site site);
  void wait(uint64_t* barrier, int parity, Site site);
  void copy(void* shared, const TensorMap& map, const BoxPlace& place, uint64_t* barrier, Site site);
  void named(int name, int threads, Site site);

  bool hasCopies() const { return !copies_.empty(); }
  void landCopy();  // any one of those in flight

  /// For the report of a deadlock: each barrier that somebody waits at.
  std::string describe() const;

 private:
  struct Barrier {
    int arrivals, pending;
    int64_t bytes = 0;  // expected and not yet copied; below 0 where the copy came first
    uint32_t phase = 0;
    bool isPublished = false;
    std::vector<int> waiting;  // threads
  };
  struct Copy {
    size_t destination;
    TensorMap map;
    BoxPlace place;
    size_t barrier;
    Site site;
    size_t bytes() const;
  };
  struct Named {
    int threads = 0;
    std::vector<int> waiting;
  };

  Barrier& find(uint64_t* barrier, const char* operation, Site site);
  void endPhaseIfComplete(Barrier& barrier);
  void land(const Copy& copy);

  BlockExecutor& block_;
  std::map<size_t, Barrier> barriers_;  // by offset in shared memory
  std::vector<Copy> copies_;
  Named named_[16];
};

}  // namespace rlhf::simt
