#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/philox.h"
#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

/// Where number d of a token's key and of its value lies, of key/value head g; `place` counts tokens over all pages.
template <class Arguments>
int64_t keyAt(const Arguments& a, int64_t place, int64_t g, int64_t d) {
  const int64_t page = place / kCachePageTokens, token = place % kCachePageTokens;
  return ((page * a.kvHeads + g) * a.headDim + d) * kCachePageTokens + token;
}
template <class Arguments>
int64_t valueAt(const Arguments& a, int64_t place, int64_t g, int64_t d) {
  const int64_t page = place / kCachePageTokens, token = place % kCachePageTokens;
  return ((page * a.kvHeads + g) * kCachePageTokens + token) * a.headDim + d;
}

template <class T>
void store(void* cache, DType type, int64_t index, const T& value) {
  if (type == DType::BF16)
    out<uint16_t>(cache)[index] = floatToBfloat16(static_cast<float>(realPart(value)));
  else
    out<T>(cache)[index] = value;
}

template <class T>
void run(const KvAppend& a) {
  for (int64_t n = 0; n < a.rows; ++n) {
    checkIndex("kvAppend", "places", n, a.places[n], a.pages * kCachePageTokens);
    for (int64_t g = 0; g < a.kvHeads; ++g)
      for (int64_t d = 0; d < a.headDim; ++d) {
        store(a.kCache, a.cacheType, keyAt(a, a.places[n], g, d), in<T>(a.k)[n * a.kStride + g * a.headDim + d]);
        store(a.vCache, a.cacheType, valueAt(a, a.places[n], g, d), in<T>(a.v)[n * a.vStride + g * a.headDim + d]);
      }
  }
}

template <class T>
void run(const DecodeAttention& a) {
  const int64_t width = a.headDim;
  const Parameter<T> keys(a.kCache, a.cacheType), values(a.vCache, a.cacheType);
  std::vector<T> weights(static_cast<size_t>(a.tableStride * kCachePageTokens));
  for (int64_t b = 0; b < a.rows; ++b) {
    const int64_t length = a.lengths[b];
    checkIndex("decodeAttention", "lengths", b, length - 1, a.tableStride * kCachePageTokens);
    const int32_t* table = a.tables + b * a.tableStride;
    for (int64_t p = 0; p < cachePages(length); ++p)
      checkIndex("decodeAttention", "tables", b * a.tableStride + p, table[p], a.pages);
    const auto placeOf = [&](int64_t j) {
      return table[j / kCachePageTokens] * kCachePageTokens + j % kCachePageTokens;
    };
    const int64_t first = a.window > 0 ? std::max<int64_t>(0, length - a.window) : 0;
    for (int64_t h = 0; h < a.heads; ++h) {
      const T* q = in<T>(a.q) + b * a.qStride + h * width;
      const int64_t g = h * a.kvHeads / a.heads;
      double largest = -std::numeric_limits<double>::infinity();
      for (int64_t j = first; j < length; ++j) {
        T score = 0;
        for (int64_t d = 0; d < width; ++d) score += q[d] * keys[keyAt(a, placeOf(j), g, d)];
        weights[j] = T(a.scale) * score;
        largest = std::max(largest, realPart(weights[j]));
      }
      T total = 0;
      for (int64_t j = first; j < length; ++j) total += weights[j] = std::exp(weights[j] - T(largest));
      for (int64_t d = 0; d < width; ++d) {
        T sum = 0;
        for (int64_t j = first; j < length; ++j) sum += weights[j] * values[valueAt(a, placeOf(j), g, d)];
        out<T>(a.o)[b * a.oStride + h * width + d] = sum / total;
      }
    }
  }
}

/// A token that may still be drawn.
template <class T>
struct Candidate {
  int32_t token;
  T logit;
  T weight;  // e^(logit − largest logit)
};

template <class T>
std::vector<Candidate<T>> allowedTokens(const Sample& a, int64_t row) {
  std::vector<uint8_t> excluded(static_cast<size_t>(a.vocab), 0);
  if (a.forbidden && (!a.forbid || a.forbid[row]))
    for (int64_t i = 0; i < a.forbiddenCount; ++i) {
      checkIndex("sample", "forbidden", i, a.forbidden[i], a.vocab, code::kTokenRange);
      excluded[a.forbidden[i]] = 1;
    }
  std::vector<Candidate<T>> allowed;
  for (int64_t v = 0; v < a.vocab; ++v) {
    T logit = in<T>(a.logits)[row * a.vocab + v];
    if (a.seen && a.seen[row * a.vocab + v])
      logit = logit > 0 ? logit / T(a.repetitionPenalty) : logit * T(a.repetitionPenalty);
    if (!(logit < std::numeric_limits<T>::infinity()))
      throw Error(code::kNonFinite,
                  "sample: logits[" + std::to_string(row) + ", " + std::to_string(v) + "] is NaN or infinite");
    if (!excluded[v] && std::isfinite(logit)) allowed.push_back({static_cast<int32_t>(v), logit, T(0)});
  }
  if (allowed.empty())
    throw Error(code::kArgument, "sample: row " + std::to_string(row) + " has no token left to draw");
  return allowed;
}

/// Keeps what top-k, top-p and min-p leave of candidates sorted by falling logit.
template <class T>
void narrow(const Sample& a, std::vector<Candidate<T>>& sorted) {
  if (a.topK > 0 && static_cast<size_t>(a.topK) < sorted.size()) sorted.resize(static_cast<size_t>(a.topK));
  T total = 0;
  for (Candidate<T>& candidate : sorted) {
    candidate.weight = std::exp(candidate.logit - sorted[0].logit);
    total += candidate.weight;
  }
  size_t kept = 0;
  T cumulative = 0;
  while (kept < sorted.size() && (kept == 0 || cumulative < T(a.topP) * total))
    cumulative += sorted[kept++].weight;
  if (a.topP < 1) sorted.resize(kept);
  while (sorted.back().weight < T(a.minP)) sorted.pop_back();  // sorted[0].weight is 1
}

template <class T>
bool isBefore(const Candidate<T>& left, const Candidate<T>& right) {
  return left.logit != right.logit ? left.logit > right.logit : left.token < right.token;
}

// The draw walks the tokens that are left by rising id until their weights pass u·total, u being uniform in [0, 1)
// from the first two words of the Philox block.
template <class T>
void run(const Sample& a) {
  for (int64_t b = 0; b < a.rows; ++b) {
    std::vector<Candidate<T>> candidates = allowedTokens<T>(a, b);
    if (a.temperature == 0) {
      a.token[b] = std::min_element(candidates.begin(), candidates.end(), isBefore<T>)->token;
      out<T>(a.logProb)[b] = 0;
      continue;
    }
    for (Candidate<T>& candidate : candidates) candidate.logit /= T(a.temperature);
    std::sort(candidates.begin(), candidates.end(), isBefore<T>);
    narrow(a, candidates);
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate<T>& left, const Candidate<T>& right) { return left.token < right.token; });
    T total = 0;
    for (const Candidate<T>& candidate : candidates) total += candidate.weight;
    const PhiloxBlock random =
        philox(a.seed, static_cast<uint64_t>(a.streams[b]), static_cast<uint64_t>(a.positions[b]));
    const T target = T(uniformDouble(random.word[0], random.word[1])) * total;
    T cumulative = 0;
    const Candidate<T>* drawn = nullptr;
    for (const Candidate<T>& candidate : candidates) {
      if (candidate.weight > 0) drawn = &candidate;  // the last, should rounding put the target beyond the sum
      cumulative += candidate.weight;
      if (cumulative > target) break;
    }
    a.token[b] = drawn->token;
    out<T>(a.logProb)[b] = std::log(drawn->weight / total);
  }
}

}  // namespace

RLHF_REF_OP(kvAppend, KvAppend)
RLHF_REF_OP(decodeAttention, DecodeAttention)

/// Ordering complex numbers means nothing, and validation has turned them away.
void sample(OpContext&, const Sample& arguments) {
  if (arguments.type == DType::F32) return run<float>(arguments);
  if (arguments.type == DType::F64) return run<double>(arguments);
  throw Error(code::kUnsupported,
              format("sample: ref has no %s, use float32 or float64", dtypeName(arguments.type)));
}

}  // namespace rlhf::ref
