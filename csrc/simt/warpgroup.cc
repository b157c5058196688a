#include "simt/warpgroup.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"
#include "simt/block.h"
#include "simt/hopper.h"

namespace rlhf::simt {
namespace {

constexpr int kDepth = 16;
constexpr int kRegistersOfMultiprocessor = 65536;
constexpr uint32_t kPoison = 0xffffffffu;

float valueOf(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// The lane's sum i of a warp's 16 rows.
int rowOf(int lane, int i) { return lane / 4 + 8 * (i >> 1 & 1); }
int columnOf(int lane, int i) { return 8 * (i >> 2) + 2 * (lane % 4) + (i & 1); }

/// A's element of a warp's 16 rows from the lanes' registers.
uint16_t fragmentElement(const uint32_t* const* lanes, int row, int k) {
  const uint32_t pair = lanes[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
  return static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16);
}

const ProductOperands& operandsOf(void* const* lanes, int lane) { return *static_cast<const ProductOperands*>(lanes[lane]); }

}  // namespace

void Warpgroups::startBlock(int warps) {
  entryRegisters_ = std::min(kRegistersOfMultiprocessor / (32 * warps) / 8 * 8, 255);
  warps_.assign(warps, {});
  for (Warp& warp : warps_) warp.registers = entryRegisters_;
  issued_.assign((warps + 3) / 4, {});
}

void Warpgroups::finishBlock() const {
  int registers = 0;
  for (size_t warp = 0; warp < warps_.size(); ++warp) {
    const Warp& self = warps_[warp];
    registers += self.registers;
    if (!self.open.empty() || !self.groups.empty())
      block_.fail(format("warp %zu ended with products that it has not waited for", warp));
    if (self.issued != issued_[warp / 4].size())
      block_.fail(format("warp %zu issued %zu products, another of its warpgroup %zu", warp, self.issued, issued_[warp / 4].size()));
  }
  const int allowed = entryRegisters_ * static_cast<int>(warps_.size());
  if (registers > allowed) block_.fail(format("setmaxnreg: %d registers for a lane of each warp, of %d that the block has", registers, allowed));
}

void Warpgroups::requireUniform(int warp, const ProductOperands& product, void* const* lanes) {
  for (int lane = 1; lane < 32; ++lane) {
    const ProductOperands& other = operandsOf(lanes, lane);
    if (other.a != product.a || other.b != product.b)
      block_.fail(format("wgmma at %s: warp %d has descriptors that differ between lanes", siteName(product.site).c_str(), warp));
  }
  auto& issued = issued_[warp / 4];
  const size_t index = warps_[warp].issued++;
  if (index == issued.size()) issued.push_back({product.a, product.b, product.site});
  const Descriptors& first = issued[index];
  if (first.a != product.a || first.b != product.b || !(first.site == product.site))
    block_.fail(format("wgmma at %s: warp %d has other descriptors than its warpgroup had at %s", siteName(product.site).c_str(), warp,
                       siteName(first.site).c_str()));
}

Warpgroups::Sums& Warpgroups::takeSums(int warp, void* const* lanes) {
  const ProductOperands& product = operandsOf(lanes, 0);
  const auto [found, isNew] = warps_[warp].sums.try_emplace(product.sums);
  Sums& sums = found->second;
  if (!isNew) return sums;
  if (!warps_[warp].isFenced)
    block_.fail(format("wgmma at %s: no wgmma.fence since warp %d had its sums", siteName(product.site).c_str(), warp));
  sums.value.resize(static_cast<size_t>(16 * product.columns));
  for (int lane = 0; lane < 32; ++lane) {
    float* values = sums.lane[lane] = operandsOf(lanes, lane).sums;
    for (int i = 0; i < product.columns / 2; ++i) sums.value[rowOf(lane, i) * product.columns + columnOf(lane, i)] = values[i];
    std::memset(values, 0xff, sizeof(float) * static_cast<size_t>(product.columns / 2));
  }
  return sums;
}

void Warpgroups::issue(int warp, void* const* lanes) {
  const ProductOperands& product = operandsOf(lanes, 0);
  if (computeCapability() != 90)
    block_.fail(format("wgmma at %s: the device's compute capability is %d", siteName(product.site).c_str(), computeCapability()));
  requireUniform(warp, product, lanes);
  ++takeSums(warp, lanes).products;
  Product issued{product, {}, {}};
  for (int lane = 0; lane < 32; ++lane) issued.fragments[lane] = operandsOf(lanes, lane).fragment;
  issued.factors = read(warp, issued);
  warps_[warp].open.push_back(std::move(issued));
}

void Warpgroups::commit(int warp) {
  warps_[warp].groups.push_back(std::move(warps_[warp].open));
  warps_[warp].open.clear();
}

void Warpgroups::wait(int warp, size_t pending) {
  Warp& self = warps_[warp];
  while (self.groups.size() > pending) {
    for (const Product& product : self.groups.front()) finish(warp, product);
    self.groups.pop_front();
  }
}

/// The element (i, k) of a factor, where the descriptor says that it is.
uint16_t Warpgroups::element(uint64_t descriptor, bool outer, int i, int k, Site site) const {
  const auto field = [&](int bit) { return static_cast<size_t>(descriptor >> bit & 0x3fff) << 4; };
  const size_t start = field(0), leading = field(16), stride = field(32);
  const int mode = static_cast<int>(descriptor >> 62), baseOffset = static_cast<int>(descriptor >> 49 & 7);
  if (baseOffset != 0 || (outer && mode != 1))
    block_.fail(format("wgmma at %s: a descriptor of a kind that is not modelled (0x%016llx)", siteName(site).c_str(),
                       static_cast<unsigned long long>(descriptor)));
  const auto [row, depth] = std::pair{static_cast<size_t>(i), static_cast<size_t>(k)};
  size_t address = start;
  if (outer) {
    address += row % 64 * 2 + row / 64 * leading + depth % 8 * 128 + depth / 8 * stride;
  } else if (mode == 0) {
    address += row % 8 * 16 + row / 8 * stride + depth / 8 * leading + depth % 8 * 2;
  } else {
    address += row % 8 * (128u >> (mode - 1)) + row / 8 * stride + depth * 2;
  }
  if (mode > 0) address ^= (address >> 7 & ((8u >> (mode - 1)) - 1)) << 4;  // of 128, 64 or 32 bytes
  const size_t begin = sharedWindowAddress(block_.shared());
  if (address < begin || address + 2 > begin + block_.sharedBytes())
    block_.fail(format("wgmma at %s: a descriptor that leads outside the block's shared memory", siteName(site).c_str()));
  uint16_t bits;
  std::memcpy(&bits, block_.shared() + (address - begin), sizeof bits);
  return bits;
}

Warpgroups::Factors Warpgroups::read(int warp, const Product& product) const {
  const auto& [operands, fragments, _] = product;
  Factors factors;
  factors.a.reserve(16 * kDepth);
  factors.b.reserve(static_cast<size_t>(kDepth * operands.columns));
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      factors.a.push_back(operands.fragment ? fragmentElement(fragments.data(), row, k)
                                            : element(operands.a, operands.outerA, warp % 4 * 16 + row, k, operands.site));
  for (int k = 0; k < kDepth; ++k)
    for (int col = 0; col < operands.columns; ++col) factors.b.push_back(element(operands.b, operands.outerB, col, k, operands.site));
  return factors;
}

/// As mma: exact products, added one by one in float32, in the order of k.
void Warpgroups::finish(int warp, const Product& product) {
  const auto& [operands, _, factors] = product;
  if (read(warp, product) != factors)
    block_.fail(format("wgmma at %s: its factors in %s changed before warp %d had waited for it", siteName(operands.site).c_str(),
                       operands.fragment ? "registers or shared memory" : "shared memory", warp));
  const auto found = warps_[warp].sums.find(operands.sums);
  Sums& sums = found->second;
  if (!operands.adds) std::ranges::fill(sums.value, 0.0f);
  const int columns = operands.columns;
  std::vector<float> b(factors.b.size());
  std::ranges::transform(factors.b, b.begin(), valueOf);
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const float a = valueOf(factors.a[row * kDepth + k]);
      for (int col = 0; col < columns; ++col) sums.value[row * columns + col] += a * b[k * columns + col];
    }
  }
  if (--sums.products > 0) return;
  giveBack(sums, operands);
  warps_[warp].sums.erase(found);
  warps_[warp].isFenced = false;  // from here on other code may have the sums
}

void Warpgroups::giveBack(const Sums& sums, const ProductOperands& product) const {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < product.columns / 2; ++i) {
      float& value = sums.lane[lane][i];
      if (std::bit_cast<uint32_t>(value) != kPoison)
        block_.fail(format("wgmma at %s: its sums were written before a wait", siteName(product.site).c_str()));
      value = sums.value[rowOf(lane, i) * product.columns + columnOf(lane, i)];
    }
  }
}

void Warpgroups::changeRegisters(int warp, int count, bool raise, Site site) {
  int& registers = warps_[warp].registers;
  if (raise ? count < registers : count > registers)
    block_.fail(format("setmaxnreg at %s: from %d to %d registers is the other direction", siteName(site).c_str(), registers, count));
  registers = count;
}

}  // namespace rlhf::simt
