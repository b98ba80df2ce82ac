// SPDX-License-Identifier: Apache-2.0
// Joins attention over two disjoint sets of keys. Weights are exp(lse - larger lse), so -inf needs no special case but one: where both
// are -inf there is nothing to weigh.
#include <cmath>
#include <limits>

#include "common/numbers.h"
#include "common/parallel.h"
#include "cpu/backend.h"

namespace chitu::cpu {

void merge(const Output& a, const Output& b, const Output& result) {
  const Shape& shape = a.out.shape;
  const std::int64_t heads = shape[1], tokens = shape[2], dim = shape[3];
  const auto numbers = static_cast<double>(3 * shape[0] * heads * tokens * dim);
  parallel_for(shape[0] * heads, thread_count(0, numbers * work_of_a_number), [&](std::int64_t i) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto lse = [&](const Output& o) { return reinterpret_cast<float*>(row(o.lse, i / heads, i % heads, t)); };
      const auto out = [&](const Output& o) { return row(o.out, i / heads, i % heads, t); };
      const float la = *lse(a), lb = *lse(b), top = std::fmax(la, lb);
      const bool has_nan = std::isnan(la) || std::isnan(lb);  // fmax() drops a NaN
      const bool none = !has_nan && top == -std::numeric_limits<float>::infinity();
      const double wa = none ? 0 : std::exp(static_cast<double>(la) - top), wb = none ? 0 : std::exp(static_cast<double>(lb) - top);
      const double sum = wa + wb;
      for (std::int64_t c = 0; c < dim; ++c) {
        // A part that counts nothing is not looked at: 0 * NaN would be NaN.
        const double xa = wa != 0 ? wa * load(out(a), a.out.type, c) : 0, xb = wb != 0 ? wb * load(out(b), b.out.type, c) : 0;
        const double mean = (xa + xb) / sum;
        store(out(result), result.out.type, c, none ? 0.f : static_cast<float>(std::isinf(mean) ? mean : within(result.out.type, mean)));
      }
      *lse(result) = none ? top : has_nan ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(top + std::log(sum));
    }
  });
}

}  // namespace chitu::cpu
