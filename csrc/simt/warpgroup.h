#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "simt/execution.h"

namespace rlhf::simt {

class BlockExecutor;

/// Where a lane's factors of a wgmma are, and whether the product is added to the sums.
struct ProductFactors {
  const uint32_t* fragment;  // of A, four registers; or null: in shared memory as well
  uint64_t a, b;             // descriptors
  bool outerA, outerB;
  bool adds;
};

/// What a lane brings to wgmma.
struct ProductOperands : ProductFactors {
  float* sums;
  int columns;
  Site site;
};

/// One block's products of warpgroups. Each warp has its sixteen rows of a product, and warps run apart from each other: what follows
/// from that no kernel may rely on.
class Warpgroups {
 public:
  explicit Warpgroups(BlockExecutor& block) : block_(block) {}

  void startBlock(int warps);
  /// Throws Error for products that nobody has waited for, and for warps of a warpgroup that issued different numbers of them.
  void finishBlock() const;

  void fence(int warp) { warps_[warp].isFenced = true; }
  void issue(int warp, void* const* lanes);
  void commit(int warp);
  void wait(int warp, size_t pending);

  void changeRegisters(int warp, int count, bool raise, Site site);

 private:
  /// The sums of a warp while products run on them; the lanes' own hold NaN for so long.
  struct Sums {
    float* lane[32];
    std::vector<float> value;  // 16 × columns
    int products = 0;
  };
  struct Factors {
    std::vector<uint16_t> a, b;  // 16 × 16, and 16 × columns with k outside
    bool operator==(const Factors&) const = default;
  };
  struct Product {
    ProductOperands operands;  // of lane 0
    std::array<const uint32_t*, 32> fragments;
    Factors factors;
  };
  struct Warp {
    bool isFenced = false;
    int registers = 0;
    size_t issued = 0;
    std::map<float*, Sums> sums;  // by those of lane 0
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
  };
  struct Descriptors {
    uint64_t a, b;
    Site site;
  };

  void requireUniform(int warp, const ProductOperands& product, void* const* lanes);
  Sums& takeSums(int warp, void* const* lanes);
  void giveBack(const Sums& sums, const ProductOperands& product) const;
  Factors read(int warp, const Product& product) const;
  uint16_t element(uint64_t descriptor, bool outer, int i, int k, Site site) const;
  void finish(int warp, const Product& product);

  BlockExecutor& block_;
  std::vector<Warp> warps_;
  std::vector<std::vector<Descriptors>> issued_;  // of each warpgroup, by whichever warp came first
  int entryRegisters_ = 0;
};

}  // namespace rlhf::simt
