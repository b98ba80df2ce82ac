// SPDX-License-Identifier: Apache-2.0
// Times calls by the CPU's clock, on a sample of query rows if the whole call would take too long.
#include <algorithm>
#include <chrono>

#include "cli/measure/meter.h"

namespace chitu::cli {
namespace {

// Rows of a timed sample are a multiple of this, so that the sample and its half are whole blocks of the CPU's kernels.
constexpr std::int64_t sample_step = 768;
// Rows of a sample for each thread, over all heads: enough tasks that no thread waits long for the last.
constexpr std::int64_t sample_rows_of_thread = 1536;
// A sample must be this much shorter than the whole, or it saves nothing.
constexpr std::int64_t sample_gain = 4;

template <class Work>
double milliseconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Prepared {
  Quantized query, key, value;
};

// Cost model: a fixed part, and a part for each visible pair of query and key. Timing a sample and its first half gives both.
struct Sample {
  RowRun whole, half;
};

// Where the methods write, one after another.
struct Results {
  HostTensor out, lse;
};

class CpuMeter : public Meter {
 public:
  CpuMeter(const Workload& w, const Method& method, const Truth& truth, const MeasureSettings& settings, std::shared_ptr<const Results> r)
      : Meter(method), w_(w), truth_(truth), settings_(settings), results_(std::move(r)) {}

  double warm_up() override {
    sample_ = sample();
    if (sample_) result_.sampled_rows = sample_->whole.count;
    const double milliseconds =
        milliseconds_of([&] { sample_ ? attend_cover() : attention(w_.query, w_.key, w_.value, output(), options(all())); });
    result_.errors = compare(output(), truth_);
    return milliseconds;
  }

  void run() override {
    Prepared p;
    quantise_.push_back(milliseconds_of([&] { p = prepare(false); }));
    if (sample_) {
      attention_.push_back(extrapolate(p));
      total_.push_back(quantise_.back() + attention_.back());
      return;
    }
    const Tensor& out = output().out;
    attention_.push_back(milliseconds_of([&] { attention(p.query, p.key, p.value, out, options(all())); }));
    total_.push_back(milliseconds_of([&] { attention(w_.query, w_.key, w_.value, out, options(all())); }));
  }

  Measurement finish() override {
    if (!sample_) require_unchanged(result_, output(), truth_);
    result_.quantise = spread_of(quantise_);
    result_.attention = spread_of(attention_);
    result_.total = spread_of(total_);
    return result_;
  }

 private:
  Output output() const { return {results_->out.tensor, results_->lse.tensor}; }
  RowRun all() const { return {0, w_.query.shape[2]}; }

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

  double milliseconds_of_rows(const Prepared& p, const RowRun& run) const {
    const Quantized query = rows_of(p.query, run);
    return milliseconds_of([&] { attention(query, p.key, p.value, rows_of(output().out, run), options(run)); });
  }

  // The sample to time; absent if the whole call is affordable.
  std::optional<Sample> sample() const {
    const std::int64_t queries = w_.query.shape[2], heads = w_.query.shape[0] * w_.query.shape[1];
    const std::int64_t steps = std::max<std::int64_t>(sample_rows_of_thread * w_.threads / (heads * sample_step), 1);
    const std::int64_t rows = steps * sample_step, first = (queries - rows) / 2 / tile_tokens * tile_tokens;
    if (queries < sample_gain * rows) return {};
    const Sample s{.whole = {first, rows}, .half = {first, rows / 2}};
    const double milliseconds = milliseconds_of_rows(prepare(false), s.whole);
    const double part = static_cast<double>(w_.pairs(first, rows)) / static_cast<double>(w_.pairs());
    if (milliseconds <= 1000 * settings_.sample_above * part) return {};
    return s;
  }

  double extrapolate(const Prepared& p) const {
    const double half = milliseconds_of_rows(p, sample_->half), whole = milliseconds_of_rows(p, sample_->whole);
    const auto pairs = [&](const RowRun& run) { return static_cast<double>(w_.pairs(run.first, run.count)); };
    const double each = std::max(whole - half, 0.) / (pairs(sample_->whole) - pairs(sample_->half));
    return whole + each * (static_cast<double>(w_.pairs()) - pairs(sample_->whole));
  }

  // Computes the rows of the truth together with all rows of their tiles: only so do scales, and hence the results, equal those of a whole
  // call.
  void attend_cover() {
    const Prepared p = prepare(true);
    for (const RowRun& run : truth_.runs) {
      const std::int64_t first = run.first / tile_tokens * tile_tokens;
      const std::int64_t end = std::min((run.first + run.count + tile_tokens - 1) / tile_tokens * tile_tokens, w_.query.shape[2]);
      const RowRun cover{first, end - first};
      attention(rows_of(p.query, cover), p.key, p.value, {rows_of(output().out, cover), rows_of(output().lse, cover)}, options(cover));
    }
  }

  const Workload& w_;
  const Truth& truth_;
  const MeasureSettings& settings_;
  std::shared_ptr<const Results> results_;
  std::optional<Sample> sample_;
  std::vector<double> quantise_, attention_, total_;
};

}  // namespace

Meters cpu_meters(const Workload& w, std::span<const Method* const> methods, const Truth& truth, const MeasureSettings& settings) {
  const Shape& q = w.query.shape;
  const auto results = std::make_shared<Results>(Results{allocate(w.query.type, q), allocate(DType::f32, {q[0], q[1], q[2], 1})});
  Meters meters;
  for (const Method* method : methods) meters.push_back(std::make_unique<CpuMeter>(w, *method, truth, settings, results));
  return meters;
}

}  // namespace chitu::cli
