// SPDX-License-Identifier: Apache-2.0
// Quantises an operand: what a head needs as a whole (centre, channel vector, maxima), then its tokens chunk by chunk in a backend.
// docs/numerics.md, "Quantising", is the specification.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <tuple>

#include "common/limits.h"
#include "common/numbers.h"
#include "common/parallel.h"
#include "common/sample.h"
#include "cpu/backend.h"
#include "cpu/buffer.h"

namespace chitu::cpu {
namespace {

// Where one sequence's tokens, groups and tiles lie.
struct Span {
  std::int64_t batch, begin, count, first_group, first_tile;
};

std::vector<Span> spans_of(const Tensor& x, const Groups& groups, std::span<const std::int64_t> starts) {
  std::vector<Span> spans;
  if (starts.empty()) {
    for (std::int64_t b = 0; b < x.shape[0]; ++b) spans.push_back({b, 0, x.shape[2], 0, 0});
    return spans;
  }
  std::int64_t group = 0, tile = 0;
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const std::int64_t count = starts[i + 1] - starts[i];
    spans.push_back({0, starts[i], count, group, tile});
    group += groups.count(count);
    tile += tiles_of(count);
  }
  return spans;
}

float* at(const Tensor& f32, std::int64_t i0, std::int64_t i1, std::int64_t i2 = 0) {
  return reinterpret_cast<float*>(row(f32, i0, i1, i2));
}

// Over tokens of one head, sums in double and in the order of the tokens; a token with a NaN or an infinity counts nothing.
struct Statistics {
  std::vector<double> sum, sum_of_sizes;
  std::vector<float> maximum;
  std::int64_t count = 0;

  explicit Statistics(std::int64_t dim)
      : sum(static_cast<std::size_t>(dim)), sum_of_sizes(static_cast<std::size_t>(dim)), maximum(static_cast<std::size_t>(dim)) {}

  void add(const float* x) {
    if (!std::all_of(x, x + sum.size(), is_finite)) return;
    ++count;
    for (std::size_t c = 0; c < sum.size(); ++c) {
      sum[c] += x[c];
      sum_of_sizes[c] += std::fabs(x[c]);
      maximum[c] = std::max(maximum[c], std::fabs(x[c]));
    }
  }
};

float round_to(DType type, float x) {
  return type == DType::f16 ? f16_to_f32(f32_to_f16(x)) : type == DType::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

// In x's own type, so that a tensor core can subtract it.
void mean_of(const Statistics& s, DType type, float* mean) {
  for (std::size_t c = 0; c < s.sum.size(); ++c)
    mean[c] = s.count ? round_to(type, static_cast<float>(s.sum[c] / static_cast<double>(s.count))) : 0;
}

void channel_vector(const Statistics& s, float* lambda) {
  const std::size_t dim = s.sum.size();
  double total = 0;
  for (std::size_t c = 0; c < dim; ++c) {
    const auto mean = s.count ? static_cast<float>(s.sum_of_sizes[c] / static_cast<double>(s.count)) : 0;
    lambda[c] = std::min(s.maximum[c], channel_ceiling * mean);
    total += lambda[c];
  }
  const auto mean = static_cast<float>(total / static_cast<double>(dim));
  for (std::size_t c = 0; c < dim; ++c) lambda[c] = mean > smallest_maximum ? std::max(lambda[c], mean * channel_floor) : 1;
}

class Job {
 public:
  Job(const Backend& backend, const Tensor& x, Role role, const Quant& quant, const QuantizeOptions& options)
      : backend_(backend), x_(x), quant_(quant), options_(options), spans_(spans_of(x, quant.groups, options.starts)) {
    q_.role = role;
    q_.quant = quant;
    q_.starts.assign(options.starts.begin(), options.starts.end());
  }

  Quantized run() {
    allocate_scales();
    allocate_vectors();
    const std::int64_t heads = x_.shape[1];
    const auto [batch, kv_heads, tokens, dim] = x_.shape;
    const int threads = thread_count(options_.threads, static_cast<double>(batch * kv_heads * tokens * dim) * work_of_a_number);
    parallel_for(static_cast<std::int64_t>(spans_.size()) * heads, threads, [&](std::int64_t i) { prepare_head(i / heads, i % heads); });

    std::vector<std::int64_t> first{0};  // chunk of each sequence
    for (const Span& s : spans_) first.push_back(first.back() + tiles_of(s.count));
    parallel_for(first.back() * heads, threads, [&](std::int64_t i) {
      const std::int64_t chunk = i / heads, sequence = std::upper_bound(first.begin(), first.end(), chunk) - first.begin() - 1;
      quantize_chunk(sequence, i % heads, chunk - first[static_cast<std::size_t>(sequence)]);
    });
    collect_residuals();
    std::sort(q_.nonfinite.begin(), q_.nonfinite.end(), [](const NonFinite& a, const NonFinite& b) {
      return std::tie(a.sequence, a.head, a.token) < std::tie(b.sequence, b.head, b.token);
    });
    return std::move(q_);
  }

 private:
  Tensor allocate(DType type, const Shape& shape) {
    const std::int64_t count = shape[0] * shape[1] * shape[2] * shape[3] * bytes(type);
    Memory memory = cpu::allocate(count + 64);
    const Free free = memory.get_deleter();
    std::shared_ptr<std::byte[]> shared(memory.release(), free);  // before the vector grows, which may fail
    q_.storage.push_back(std::move(shared));
    return dense(q_.storage.back().get(), type, shape);
  }

  void allocate_scales() {
    const auto [batch, heads, tokens, dim] = x_.shape;
    q_.values = quant_.scaling == Scaling::none ? x_ : allocate(quant_.type, x_.shape);
    if (quant_.scaling == Scaling::none) return;
    q_.scales = allocate(DType::f32, scales_shape(quant_, x_.shape, options_.starts));
    if (quant_.sorted) q_.ranks = allocate(DType::u8, {batch, heads, tokens, 1});
    if (quant_.scaling != Scaling::tile) return;
    q_.channels = allocate(DType::f32, {static_cast<std::int64_t>(spans_.size()), heads, 1, dim});
    q_.residual_of.assign(static_cast<std::size_t>(batch * heads * q_.scales.shape[2]), -1);
  }

  void allocate_vectors() {
    const auto [batch, heads, tokens, dim] = x_.shape;
    const auto sequences = static_cast<std::int64_t>(spans_.size());
    if (quant_.centre != Centre::none) q_.centre = allocate(DType::f32, {sequences, heads, 1, dim});
    if (q_.role == Role::query && options_.keys && given(options_.keys->centre)) {
      q_.centre = options_.keys->centre;
      q_.storage.insert(q_.storage.end(), options_.keys->storage.begin(), options_.keys->storage.end());  // keeps the centre alive
      q_.correction = allocate(DType::f32, {batch, heads, tokens, 1});
    }
    factors_.resize(static_cast<std::size_t>(sequences * heads * dim));
    head_factors_.assign(static_cast<std::size_t>(sequences * heads), 1);
  }

  template <class Token>
  Statistics statistics(const Span& s, std::int64_t head, std::int64_t count, const Token& token) const {
    Statistics result(x_.shape[3]);
    float buffer[max_dim];
    for (std::int64_t i = 0; i < count; ++i) {
      backend_.to_f32(row(x_, s.batch, head, s.begin + token(i)), x_.type, buffer, x_.shape[3]);
      if (q_.role == Role::value)
        std::replace_if(
            buffer, buffer + x_.shape[3], [](float number) { return !is_finite(number); }, 0.f);
      result.add(buffer);
    }
    return result;
  }
  Statistics of_all(const Span& s, std::int64_t head) const {
    return statistics(s, head, s.count, [](std::int64_t i) { return i; });
  }
  Statistics of_sample(const Span& s, std::int64_t head) const {
    const Sample sample(s.count);
    return statistics(s, head, sample.count, [&](std::int64_t i) { return sample.token(i); });
  }

  void prepare_head(std::int64_t sequence, std::int64_t head) {
    const Span& s = spans_[static_cast<std::size_t>(sequence)];
    const std::int64_t dim = x_.shape[3], unit = sequence * x_.shape[1] + head;
    float* factors = factors_.data() + unit * dim;

    if (quant_.centre != Centre::none) {
      float* centre = at(q_.centre, sequence, head);
      if (options_.centre.data) {
        std::copy_n(at(options_.centre, sequence, head), dim, centre);
        require(std::all_of(centre, centre + dim, is_finite), "centre must be finite, but one of its numbers is not");
      } else
        mean_of(quant_.centre == Centre::mean ? of_all(s, head) : of_sample(s, head), x_.type, centre);
    }
    if (quant_.scaling == Scaling::tile) {
      float* lambda = at(q_.channels, sequence, head);
      if (options_.channels.data) {
        std::copy_n(at(options_.channels, sequence, head), dim, lambda);
        for (std::int64_t c = 0; c < dim; ++c)
          require(lambda[c] >= smallest_maximum && is_finite(lambda[c]), "channels must be positive and finite, but one is ", lambda[c]);
      } else {
        channel_vector(of_sample(s, head), lambda);
      }
      for (std::int64_t c = 0; c < dim; ++c) factors[c] = 1 / lambda[c];
    }
    if (quant_.scaling == Scaling::channel) {
      const Statistics all = of_all(s, head);
      for (std::int64_t c = 0; c < dim; ++c) {
        const float maximum = std::max(all.maximum[static_cast<std::size_t>(c)], smallest_maximum);
        at(q_.scales, sequence, head)[c] = maximum / largest(quant_.type);
        factors[c] = largest(quant_.type) / maximum;
      }
    }
    if (quant_.scaling == Scaling::head) {
      const Statistics all = of_all(s, head);
      const float maximum = std::max(*std::max_element(all.maximum.begin(), all.maximum.end()), smallest_maximum);
      // FP16 is a floating format with room: it is scaled only where numbers would overflow or become subnormal.
      const bool fits = maximum >= least_plain_f16 && maximum <= largest(DType::f16);
      const bool as_it_is = quant_.type == DType::f16 && (x_.type == DType::f16 || fits);
      at(q_.scales, sequence, head)[0] = as_it_is ? 1 : maximum / largest(quant_.type);
      head_factors_[static_cast<std::size_t>(unit)] = as_it_is ? 1 : largest(quant_.type) / maximum;
    }
  }

  void quantize_chunk(std::int64_t sequence, std::int64_t head, std::int64_t chunk) {
    const Span& s = spans_[static_cast<std::size_t>(sequence)];
    const std::int64_t dim = x_.shape[3], first = chunk * tile_tokens, unit = sequence * x_.shape[1] + head;
    TokenChunk t;
    t.rows = row(x_, s.batch, head, s.begin + first);
    t.type = x_.type;
    t.row_stride = x_.stride[2];
    t.count = static_cast<int>(std::min<std::int64_t>(tile_tokens, s.count - first));
    t.dim = static_cast<int>(dim);
    t.quant = quant_;
    t.by_number = q_.role == Role::value;
    if (quant_.centre != Centre::none) t.centre = at(q_.centre, sequence, head);
    if (quant_.scaling == Scaling::tile || quant_.scaling == Scaling::channel) t.channel_factors = factors_.data() + unit * dim;
    t.head_factor = head_factors_[static_cast<std::size_t>(unit)];
    if (q_.correction.data) {
      t.correction_centre = at(q_.centre, sequence, head / (x_.shape[1] / q_.centre.shape[1]));
      t.corrections = at(q_.correction, s.batch, head, s.begin + first);
    }
    if (quant_.scaling != Scaling::none) t.values = row(q_.values, s.batch, head, s.begin + first);
    if (quant_.scaling == Scaling::tokens) t.scales = at(q_.scales, s.batch, head, s.first_group + quant_.groups.count(first));
    if (quant_.scaling == Scaling::tile) t.scales = at(q_.scales, s.batch, head, s.first_tile + chunk);
    if (quant_.sorted) t.ranks = reinterpret_cast<std::uint8_t*>(row(q_.ranks, s.batch, head, s.begin + first));
    std::vector<std::int8_t> residual(quant_.scaling == Scaling::tile ? static_cast<std::size_t>(tile_tokens * dim) : 0);
    t.residual = residual.data();

    backend_.quantize(t);

    if (!t.flagged && t.nonfinite.none()) return;
    const std::lock_guard lock(mutex_);
    if (t.flagged) residuals_.emplace_back((s.batch * x_.shape[1] + head) * q_.scales.shape[2] + s.first_tile + chunk, std::move(residual));
    for (int i = 0; i < t.count; ++i) {
      if (!t.nonfinite[static_cast<std::size_t>(i)]) continue;
      NonFinite n{sequence, head, first + i, std::vector<float>(static_cast<std::size_t>(dim))};
      backend_.to_f32(row(x_, s.batch, head, s.begin + first + i), x_.type, n.values.data(), dim);
      q_.nonfinite.push_back(std::move(n));
    }
  }

  void collect_residuals() {
    if (residuals_.empty()) return;
    std::sort(residuals_.begin(), residuals_.end());
    const std::int64_t dim = x_.shape[3];
    q_.residuals = allocate(DType::i8, {1, static_cast<std::int64_t>(residuals_.size()), tile_tokens, dim});
    for (std::size_t i = 0; i < residuals_.size(); ++i) {
      q_.residual_of[static_cast<std::size_t>(residuals_[i].first)] = static_cast<std::int32_t>(i);
      std::copy(residuals_[i].second.begin(), residuals_[i].second.end(),
                reinterpret_cast<std::int8_t*>(row(q_.residuals, 0, static_cast<std::int64_t>(i), 0)));
    }
  }

  const Backend& backend_;
  const Tensor& x_;
  const Quant quant_;
  const QuantizeOptions& options_;
  const std::vector<Span> spans_;
  Quantized q_;
  std::vector<float> factors_;                                                // [sequences, heads, dim]: what channels are multiplied by
  std::vector<float> head_factors_;                                           // [sequences, heads]
  std::mutex mutex_;                                                          // of the next, and of q_.nonfinite
  std::vector<std::pair<std::int64_t, std::vector<std::int8_t>>> residuals_;  // (tile, [tile_tokens, dim])
};

}  // namespace

Quantized quantize_with(const Backend& backend, const Tensor& x, Role role, const Recipe& recipe, const QuantizeOptions& options) {
  return Job(backend, x, role, quant_of(recipe, role), options).run();
}

}  // namespace chitu::cpu
