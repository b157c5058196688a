#pragma once
#include "ops/ops.h"

namespace rlhf::ref {

#define RLHF_DECLARE_REF(name, Arguments) void name(OpContext& context, const Arguments& arguments);
RLHF_FOR_EACH_OP(RLHF_DECLARE_REF)
#undef RLHF_DECLARE_REF

}  // namespace rlhf::ref
