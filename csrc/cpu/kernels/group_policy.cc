#include <algorithm>
#include <array>

#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/token_losses.h"

// A few numbers per token: plain loops on the calling thread, in double as in losses.cc.

namespace rlhf::RLHF_ISA {
namespace {

token_loss::SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t sequence) {
  token_loss::SharedRatio sums;
  if (a.level == RatioLevel::Token) return sums;
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t)
    if (static_cast<const float*>(a.mask)[t] != 0) token_loss::addToken(sums, a, t);
  return token_loss::sharedOf(a, sums);
}

}  // namespace

void groupPolicyLoss(OpContext&, const GroupPolicyLoss& a) {
  requireFloat32(a.type, "groupPolicyLoss");
  std::array<double, GroupPolicyLoss::kStatCount> sums{};
  auto* const dLogProb = static_cast<float*>(a.dLogProb);
  std::fill_n(dLogProb, a.rows, 0.0f);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const token_loss::SharedRatio shared = sharedRatio(a, s);
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      if (static_cast<const float*>(a.mask)[t] == 0) continue;
      const token_loss::GroupPolicyTerm term = RLHF_ISA::termOf(a, shared, s, t);
      dLogProb[t] = term.slope.logProb;
      token_loss::addSums(term, sums.data());
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) static_cast<float*>(a.stats)[i] = static_cast<float>(sums[i]);
}

}  // namespace rlhf::RLHF_ISA
