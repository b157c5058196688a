#pragma once

/// Declares a function that only asks for memory. GCC takes one that it has not inlined yet for a function without effect, and drops its calls.
#define RLHF_PREFETCH __attribute__((always_inline))
