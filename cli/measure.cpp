// SPDX-License-Identifier: Apache-2.0
#include "cli/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace chitu::cli {
namespace {

// Rows of a timed sample are a multiple of this: whole blocks of the CPU's kernels, of the half sample too.
constexpr std::int64_t sample_step = 768;
// Rows a thread, over all heads: enough tasks that none waits long for the last.
constexpr std::int64_t sample_rows_of_thread = 1536;
// A sample must be this much shorter than the whole, or it saves nothing.
constexpr std::int64_t sample_gain = 4;
// Products of a query's and a key's channels that double precision takes in about 3 s on two cores.
constexpr double affordable_products = 0x1p32;

template <class Work>
double milliseconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Prepared {
  Quantized query, key, value;
};

// A cost that grows with the visible pairs on top of a fixed one, from a sample and its first half.
struct Sample {
  RowRun whole, half;
};

// One method on one workload.
class Meter {
 public:
  Meter(const Workload& w, const Method& m) : w_(w) { result_.method = &m; }

  void warm_up(const Output& output, const Truth& truth, const MeasureSettings& settings) {
    sample_ = sample(output.out, settings);
    if (sample_) {
      result_.sampled_rows = sample_->whole.count;
      return compare_cover(output, truth);
    }
    attention(w_.query, w_.key, w_.value, output, options({0, w_.query.shape[2]}));
    result_.errors = compare(output, truth);
  }

  void run(const Tensor& out) {
    Prepared p;
    quantise_.push_back(milliseconds_of([&] { p = prepare(false); }));
    if (sample_) {
      attention_.push_back(extrapolate(p, out));
      total_.push_back(quantise_.back() + attention_.back());
      return;
    }
    const Options all = options({0, w_.query.shape[2]});
    attention_.push_back(milliseconds_of([&] { attention(p.query, p.key, p.value, out, all); }));
    total_.push_back(milliseconds_of([&] { attention(w_.query, w_.key, w_.value, out, all); }));
  }

  // The errors are those of the warm-up; what was timed must be the same.
  Measurement finish(const Tensor& out, const Truth& truth) {
    if (!sample_ && compare(out, truth).mean_diff != result_.errors.mean_diff)
      throw Error(ErrorCode::internal, fmt::format("{} gave another output in its last run than in its first", result_.method->name));
    result_.quantise = spread_of(quantise_);
    result_.attention = spread_of(attention_);
    result_.total = spread_of(total_);
    return result_;
  }

 private:
  Options options(const RowRun& run) const {
    return {.recipe = result_.method->recipe,
            .window = w_.window,
            .query_positions = Positions{w_.key.shape[2] - w_.query.shape[2] + run.first, 1},
            .threads = w_.threads,
            .kernel = w_.kernel};
  }

  Prepared prepare(bool lse) const {
    const Recipe& recipe = result_.method->recipe;
    Prepared p{.query = {}, .key = quantize(w_.key, Role::key, recipe, {.threads = w_.threads}), .value = {}};
    p.value = quantize(w_.value, Role::value, recipe, {.threads = w_.threads});
    p.query = quantize(w_.query, Role::query, recipe, {.keys = lse ? &p.key : nullptr, .threads = w_.threads});
    return p;
  }

  double milliseconds_of_rows(const Prepared& p, const Tensor& out, const RowRun& run) const {
    const Quantized query = rows_of(p.query, run);
    return milliseconds_of([&] { attention(query, p.key, p.value, rows_of(out, run), options(run)); });
  }

  // Absent where the whole call is affordable.
  std::optional<Sample> sample(const Tensor& out, const MeasureSettings& settings) const {
    const std::int64_t queries = w_.query.shape[2], heads = w_.query.shape[0] * w_.query.shape[1];
    const std::int64_t steps = std::max<std::int64_t>(sample_rows_of_thread * w_.threads / (heads * sample_step), 1);
    const std::int64_t rows = steps * sample_step, first = (queries - rows) / 2 / tile_tokens * tile_tokens;
    if (queries < sample_gain * rows) return {};
    const Sample s{.whole = {first, rows}, .half = {first, rows / 2}};
    const double milliseconds = milliseconds_of_rows(prepare(false), out, s.whole);
    const double part = static_cast<double>(w_.pairs(first, rows)) / static_cast<double>(w_.pairs());
    if (milliseconds <= 1000 * settings.sample_above * part) return {};
    return s;
  }

  double extrapolate(const Prepared& p, const Tensor& out) const {
    const double half = milliseconds_of_rows(p, out, sample_->half), whole = milliseconds_of_rows(p, out, sample_->whole);
    const auto pairs = [&](const RowRun& run) { return static_cast<double>(w_.pairs(run.first, run.count)); };
    const double each = std::max(whole - half, 0.) / (pairs(sample_->whole) - pairs(sample_->half));
    return whole + each * (static_cast<double>(w_.pairs()) - pairs(sample_->whole));
  }

  Errors compare(const Output& output, const Truth& truth) const {
    Comparison comparison(w_.query.shape[0], w_.query.shape[1]);
    std::int64_t at = 0;
    for (const RowRun& run : truth.runs) {
      const RowRun part{at, run.count};
      comparison.add(rows_of(output.out, run), rows_of(output.lse, run), rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part),
                     run.first);
      at += run.count;
    }
    return comparison.errors();
  }

  // The rows of the truth, with the others of their tiles: the same numbers as in a whole call.
  void compare_cover(const Output& output, const Truth& truth) {
    const Prepared p = prepare(true);
    for (const RowRun& run : truth.runs) {
      const std::int64_t first = run.first / tile_tokens * tile_tokens;
      const std::int64_t end = std::min((run.first + run.count + tile_tokens - 1) / tile_tokens * tile_tokens, w_.query.shape[2]);
      const RowRun cover{first, end - first};
      attention(rows_of(p.query, cover), p.key, p.value, {rows_of(output.out, cover), rows_of(output.lse, cover)}, options(cover));
    }
    result_.errors = compare(output, truth);
  }

  const Workload& w_;
  Measurement result_;
  std::optional<Sample> sample_;
  std::vector<double> quantise_, attention_, total_;
};

}  // namespace

RowRuns last_rows(std::int64_t queries, std::int64_t rows) {
  const std::int64_t count = std::min(rows, queries);
  return {{queries - count, count}};
}

RowRuns spread_rows(std::int64_t queries, std::int64_t rows) {
  if (rows >= queries) return {{0, queries}};
  const std::int64_t length = std::min<std::int64_t>(rows, 32), count = rows / length;
  RowRuns runs;
  for (std::int64_t i = 0; i < count; ++i) runs.push_back({count == 1 ? queries - length : i * (queries - length) / (count - 1), length});
  return runs;
}

std::int64_t affordable_rows(const Workload& w) {
  const std::int64_t queries = w.query.shape[2];
  const double products = static_cast<double>(w.pairs() * w.query.shape[3]);
  if (products <= affordable_products) return queries;
  return std::max<std::int64_t>(8, static_cast<std::int64_t>(static_cast<double>(queries) * affordable_products / products));
}

std::int64_t total(const RowRuns& runs) {
  std::int64_t sum = 0;
  for (const RowRun& run : runs) sum += run.count;
  return sum;
}

Truth truth_of(const Workload& w, RowRuns runs) {
  const Shape& q = w.query.shape;
  const std::int64_t rows = total(runs);
  Truth truth{std::move(runs), allocate(DType::f32, {q[0], q[1], rows, q[3]}), allocate(DType::f32, {q[0], q[1], rows, 1})};
  std::int64_t at = 0;
  for (const RowRun& run : truth.runs) {
    const RowRun part{at, run.count};
    attention(rows_of(w.query, run), w.key, w.value, {rows_of(truth.out.tensor, part), rows_of(truth.lse.tensor, part)},
              {.recipe = recipes::exact,
               .window = w.window,
               .query_positions = Positions{w.key.shape[2] - q[2] + run.first, 1},
               .threads = w.threads,
               .kernel = "cpu.reference"});
    at += run.count;
  }
  return truth;
}

Tensor rows_of(Tensor t, const RowRun& run) {
  if (!t.data) return t;
  t.data = static_cast<std::byte*>(t.data) + run.first * t.stride[2] * bytes(t.type);
  t.shape[2] = run.count;
  return t;
}

Quantized rows_of(const Quantized& query, const RowRun& run) {
  Quantized part = query;
  part.values = rows_of(query.values, run);
  part.correction = rows_of(query.correction, run);
  if (query.quant.scaling == Scaling::tokens)
    part.scales = rows_of(query.scales, {query.quant.groups.count(run.first), query.quant.groups.count(run.count)});
  part.nonfinite.clear();
  for (NonFinite n : query.nonfinite) {
    n.token -= run.first;
    if (n.token >= 0 && n.token < run.count) part.nonfinite.push_back(std::move(n));
  }
  return part;
}

std::vector<Measurement> measure(const Workload& w, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work) {
  const Shape& q = w.query.shape;
  const HostTensor out = allocate(w.query.type, q), lse = allocate(DType::f32, {q[0], q[1], q[2], 1});
  const double step = work / (static_cast<double>(methods.size()) * (settings.runs + 1));
  const auto show = [&](const Method& method) { progress.show(fmt::format("{}, {} tokens, {}", w.data, q[2], method.name)); };

  std::vector<Meter> meters;
  for (const Method* method : methods) {
    show(*method);
    meters.emplace_back(w, *method).warm_up({out.tensor, lse.tensor}, truth, settings);
    progress.advance(step);
  }
  std::vector<Measurement> results;
  for (int run = 0; run < settings.runs; ++run)
    for (std::size_t i = 0; i < meters.size(); ++i) {
      show(*methods[i]);
      meters[i].run(out.tensor);
      progress.advance(step);
      if (run + 1 == settings.runs) results.push_back(meters[i].finish(out.tensor, truth));
    }
  return results;
}

}  // namespace chitu::cli
