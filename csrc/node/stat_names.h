#pragma once
#include <vector>

// What the sums of token losses are called in JavaScript, in the order of their ops' Stat.

namespace rlhf::node {

inline const std::vector<const char*> kTokenNllStats = {"loss", "weight"};
inline const std::vector<const char*> kPpoPolicyStats = {"loss",         "approxKl", "clipped", "ratio",
                                                         "ratioSquared", "entropy",  "tokens",  "dualClipped"};
inline const std::vector<const char*> kGroupPolicyStats = {"loss",  "approxKl",     "clippedLow", "clippedHigh",
                                                           "ratio", "ratioSquared", "kl",         "tokens"};
inline const std::vector<const char*> kPpoValueStats = {"loss",          "clipped",      "value", "return",
                                                        "returnSquared", "errorSquared", "tokens"};

}  // namespace rlhf::node
