#pragma once
#include "cpu/kernels/gemm.h"

namespace rlhf::RLHF_ISA {

/// Rows up to which reading a packed B takes longer than multiplying with it, or nearly so: the steps of decoding.
inline constexpr int64_t kMostFewRows = 4 * kPanelRows;

/// The product in float32 of 1 to kMostFewRows rows, where B is packed; gemm() comes here by itself. The bits are those of any other way
/// to multiply and add.
void gemmFewRows(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume);

}  // namespace rlhf::RLHF_ISA
