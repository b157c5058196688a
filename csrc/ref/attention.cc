#include <algorithm>
#include <limits>
#include <vector>

#include "ops/parents.h"
#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

/// One query row of one head, and the keys that it sees: those at positions first … last of its sequence.
struct QueryRow {
  int64_t row, head, kvHead;
  int64_t first, last;
  int64_t begin, parentBegin, inherited;  // positions below `inherited` are rows of the parent, the others its own

  int64_t keyRow(int64_t position) const {
    return position < inherited ? parentBegin + position : begin + position - inherited;
  }
};

/// Calls body for every query row of the batch, sequence by sequence.
template <class Arguments, class Body>
void forEachQuery(const char* op, const Arguments& a, Body&& body) {
  checkOffsets(op, a.offsets, a.sequences, a.rows);
  requireParents(op, a.parents, a.sequences);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t parent = a.parents ? a.parents[s] : -1, begin = a.offsets[s];
    const int64_t parentBegin = parent < 0 ? 0 : a.offsets[parent];
    const int64_t inherited = parent < 0 ? 0 : a.offsets[parent + 1] - parentBegin;
    for (int64_t n = begin; n < a.offsets[s + 1]; ++n) {
      const int64_t position = inherited + n - begin;
      const int64_t first = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
      for (int64_t h = 0; h < a.heads; ++h)
        body(QueryRow{n, h, h * a.kvHeads / a.heads, first, position, begin, parentBegin, inherited});
    }
  }
}

template <class T>
T dot(const T* left, const T* right, int64_t count, DType compute = DType::F32) {
  T sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += product(left[d], right[d], compute);
  return sum;
}

/// The least multiple of log 2 that is not below `score`, which weights are measured from.
double originOf(double score) { return std::ceil(score / std::numbers::ln2) * std::numbers::ln2; }

template <class T>
void run(const AttentionForward& a) {
  const int64_t width = a.headDim;
  const DType compute = productsOf(a);
  std::vector<T> weights(static_cast<size_t>(a.rows));
  forEachQuery("attentionForward", a, [&](const QueryRow& query) {
    const T* q = in<T>(a.q) + query.row * a.qStride + query.head * width;
    T* o = out<T>(a.o) + query.row * a.oStride + query.head * width;
    T largest = T(-std::numeric_limits<double>::infinity());
    for (int64_t j = query.first; j <= query.last; ++j) {
      const T* k = in<T>(a.k) + query.keyRow(j) * a.kStride + query.kvHead * width;
      const T score = T(a.scale) * dot(q, k, width, compute);
      weights[j] = score;
      if (realPart(score) > realPart(largest)) largest = score;
    }
    const T origin = originOf(realPart(largest));
    T total = 0;
    for (int64_t j = query.first; j <= query.last; ++j) total += weights[j] = std::exp(weights[j] - origin);
    for (int64_t d = 0; d < width; ++d) {
      T sum = 0;
      for (int64_t j = query.first; j <= query.last; ++j)
        sum += product(weights[j], in<T>(a.v)[query.keyRow(j) * a.vStride + query.kvHead * width + d], compute);
      o[d] = sum / total;
    }
    out<T>(a.lse)[query.row * a.heads + query.head] = origin + std::log(total);
  });
}

template <class T>
void clearRows(void* gradient, int64_t rows, int64_t stride, int64_t width) {
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t i = 0; i < width; ++i) out<T>(gradient)[n * stride + i] = T(0);
}

// With p_j = exp(scale·q·k_j − lse) and delta = dO·o:
//   ds_j = p_j·(dO·v_j − delta),  dq = scale·Σ ds_j·k_j,  dk_j += scale·(ds_j·q),  dv_j += p_j·dO.
template <class T>
void run(const AttentionBackward& a) {
  const int64_t width = a.headDim;
  const DType compute = productsOf(a);
  clearRows<T>(a.dq, a.rows, a.qStride, a.heads * width);
  clearRows<T>(a.dk, a.rows, a.kStride, a.kvHeads * width);
  clearRows<T>(a.dv, a.rows, a.vStride, a.kvHeads * width);
  forEachQuery("attentionBackward", a, [&](const QueryRow& query) {
    const int64_t at = query.row * a.heads + query.head;
    const int64_t qAt = query.row * a.qStride + query.head * width;
    const int64_t oAt = query.row * a.oStride + query.head * width;
    const T* q = in<T>(a.q) + qAt;
    const T* dO = in<T>(a.dO) + oAt;
    const T delta = dot(dO, in<T>(a.o) + oAt, width);
    out<T>(a.delta)[at] = delta;
    for (int64_t j = query.first; j <= query.last; ++j) {
      const int64_t row = query.keyRow(j);
      const int64_t kAt = row * a.kStride + query.kvHead * width, vAt = row * a.vStride + query.kvHead * width;
      const T* k = in<T>(a.k) + kAt;
      const T p = std::exp(T(a.scale) * dot(q, k, width, compute) - in<T>(a.lse)[at]);
      const T dScore = p * (dot(dO, in<T>(a.v) + vAt, width, compute) - delta);
      for (int64_t d = 0; d < width; ++d) {
        out<T>(a.dq)[qAt + d] += T(a.scale) * product(dScore, k[d], compute);
        out<T>(a.dk)[kAt + d] += T(a.scale) * product(dScore, q[d], compute);
        out<T>(a.dv)[vAt + d] += product(p, dO[d], compute);
      }
    }
  });
}

}  // namespace

RLHF_REF_OP(attentionForward, AttentionForward)
RLHF_REF_OP(attentionBackward, AttentionBackward)

}  // namespace rlhf::ref
