#include "simt/hopper.h"

#include <cstdlib>

#include "simt/block.h"

namespace rlhf::simt {
namespace {

constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr uint32_t kWindowBase = 1024;  // what the system reserves comes first

thread_local int scopedCapability = 0;

int warpNumber() { return running().current().warp(); }

// The last lane to come speaks for its warp.
void computeProduct(void* const* lanes, uint32_t) { running().warpgroups().issue(warpNumber(), lanes); }
void computeFence(void* const*, uint32_t) { running().warpgroups().fence(warpNumber()); }
void computeCommit(void* const*, uint32_t) { running().warpgroups().commit(warpNumber()); }

void computeWait(void* const* lanes, uint32_t) {
  running().warpgroups().wait(warpNumber(), static_cast<size_t>(*static_cast<const int*>(lanes[0])));
}

struct RegisterChange {
  int count;
  bool raise;
  Site site;
};

void computeRegisters(void* const* lanes, uint32_t) {
  const auto& [count, raise, site] = *static_cast<const RegisterChange*>(lanes[0]);
  running().warpgroups().changeRegisters(warpNumber(), count, raise, site);
}

constexpr WarpOperation kProduct{"wgmma", computeProduct};
constexpr WarpOperation kFence{"wgmma.fence", computeFence};
constexpr WarpOperation kCommit{"wgmma.commit_group", computeCommit};
constexpr WarpOperation kWait{"wgmma.wait_group", computeWait};
constexpr WarpOperation kRegisters{"setmaxnreg", computeRegisters};

}  // namespace

int computeCapability() {
  if (scopedCapability > 0) return scopedCapability;
  const char* text = std::getenv("RLHF_CUDA_CAPABILITY");
  return text && *text ? std::atoi(text) : 80;
}

EmulatedCapability::EmulatedCapability(int capability) { scopedCapability = capability; }
EmulatedCapability::~EmulatedCapability() { scopedCapability = 0; }

uint32_t sharedWindowAddress(const void* pointer) {
  return kWindowBase + static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - running().shared());
}

void initBarrier(uint64_t* barrier, int arrivals, Site site) { running().transactions().init(barrier, arrivals, site); }
void publishBarriers() { running().transactions().publish(); }
void arrive(uint64_t* barrier, int expectedBytes, Site site) { running().transactions().arrive(barrier, expectedBytes, site); }
void waitFor(uint64_t* barrier, int parity, Site site) { running().transactions().wait(barrier, parity, site); }

void copyBox(void* shared, const TensorMap& map, const BoxPlace& place, uint64_t* barrier, Site site) {
  running().transactions().copy(shared, map, place, barrier, site);
}

void namedBarrier(int name, int threads, Site site) { running().transactions().named(name, threads, site); }

void wgmma(float* sums, int columns, const ProductFactors& factors, Site site) {
  ProductOperands operands{factors, sums, columns, site};
  warpRendezvous(kProduct, kFullWarp, &operands, site);
}

void wgmmaFence(Site site) { warpRendezvous(kFence, kFullWarp, nullptr, site); }
void wgmmaCommit(Site site) { warpRendezvous(kCommit, kFullWarp, nullptr, site); }
void wgmmaWait(int pending, Site site) { warpRendezvous(kWait, kFullWarp, &pending, site); }

void changeRegisters(int count, bool raise, Site site) {
  RegisterChange change{count, raise, site};
  warpRendezvous(kRegisters, kFullWarp, &change, site);
}

}  // namespace rlhf::simt
