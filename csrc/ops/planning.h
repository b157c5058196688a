#pragma once
#include "ops/ops.h"

namespace rlhf {

/// A backend's table with operators that do nothing; the sizes of scratch memory and packed weights are the backend's own. With
/// `planningDevice`, the engine's code runs through without memory and without arithmetic: what it asks for is the plan of what
/// it will ask for.
Ops planningOps(const Ops& ops);

/// A device whose memory is addresses that nobody may touch: copies and fills do nothing.
Device planningDevice(const Device& device);

}  // namespace rlhf
