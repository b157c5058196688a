#pragma once
#include "ops/context.h"

namespace rlhf {

/// A device whose memory is the process's own and whose calls have run by the time they return: its one stream holds nothing,
/// and null stands for it. Backends that compute on the host change what differs for them.
Device makeHostDevice(const char* name);

}  // namespace rlhf
