// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "cli/measure/gpu.h"
#include "cli/measure/meter.h"

namespace chitu::cli {
namespace {

// On a GPU, the calls of each method are timed for about this long.
constexpr double gpu_milliseconds = 1000;

// call_ms: the time of one call, of each method that runs.
int runs_of(const MeasureSettings& settings, Device device, const std::vector<double>& call_ms) {
  if (settings.runs) return *settings.runs;
  if (device == Device::cpu) return settings.cpu_runs;
  const double of_a_run = 2 * std::accumulate(call_ms.begin(), call_ms.end(), 0.);  // in two steps, and whole
  const double runs = gpu_milliseconds * static_cast<double>(call_ms.size()) / std::max(of_a_run, 1e-3);
  return static_cast<int>(std::clamp<double>(runs, least_gpu_runs, most_gpu_runs));
}

std::string nothing_runs(const std::vector<Measurement>& refused) {
  std::string reasons;
  for (const Measurement& m : refused) reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", m.method->name, m.refused);
  return "the GPU runs none of these methods: " + reasons;
}

}  // namespace

void require_unchanged(const Measurement& first, const Output& output, const Truth& truth) {
  const double last = compare(output, truth).mean_diff, before = first.errors.mean_diff;
  if (last != before && !(std::isnan(last) && std::isnan(before)))  // unknown: nothing was compared
    throw Error(ErrorCode::internal, fmt::format("{} gave another output in its last run than in its first", first.method->name));
}

double quantise_bytes(const Workload& w, const Method& method, bool with_queries) {
  const Recipe& recipe = method.recipe;
  const auto moved = [&](Role role, const Tensor& t, const Quant& q) {
    const double elements = static_cast<double>(t.shape[0] * t.shape[1]) * static_cast<double>(t.shape[2] * t.shape[3]);
    return q.scaling == Scaling::none || w.is_quantized(role) ? 0 : elements * (bytes(t.type) + bytes(q.type));
  };
  return (with_queries ? moved(Role::query, w.query, recipe.query) : 0) + moved(Role::key, w.key, recipe.key) +
         moved(Role::value, w.value, recipe.value);
}

std::vector<Measurement> measure(const Workload& w, std::span<const Method* const> methods, const Truth& truth,
                                 const MeasureSettings& settings, Progress& progress, double work) {
  const auto show = [&](const Method& method) { progress.show(fmt::format("{}, {} tokens, {}", w.data, w.query.shape[2], method.name)); };
  Meters meters = w.device == Device::cuda ? gpu::meters(w, methods, truth) : cpu_meters(w, methods, truth, settings);
  const double warm_up_work = work / (settings.runs.value_or(settings.cpu_runs) + 1);

  std::vector<Measurement> results;
  std::vector<double> call_ms;
  for (std::size_t i = 0; i < meters.size(); ++i) {
    show(*methods[i]);
    results.push_back({.method = methods[i]});
    try {
      call_ms.push_back(meters[i]->warm_up());
    } catch (const Error& error) {  // a GPU's kernels may not take every method: the others are measured all the same
      if (w.device == Device::cpu || error.code() == ErrorCode::bad_argument || error.code() == ErrorCode::internal) throw;
      results.back().refused = error.what();
      meters[i].reset();
    }
    progress.advance(warm_up_work / static_cast<double>(meters.size()));
  }
  if (call_ms.empty()) throw Error(ErrorCode::unsupported, nothing_runs(results));
  const int runs = runs_of(settings, w.device, call_ms);
  for (int done = 0, row; done < runs; done += row) {
    row = std::min(settings.in_a_row, runs - done);
    for (std::size_t i = 0; i < meters.size(); ++i) {
      if (!meters[i]) continue;
      show(*methods[i]);
      if (settings.rest_ms > 0) meters[i]->rest(std::chrono::milliseconds(settings.rest_ms));
      for (int run = 0; run < row; ++run) meters[i]->run();
      progress.advance((work - warm_up_work) * row / (static_cast<double>(call_ms.size()) * runs));
      if (done + row < runs) continue;
      results[i] = meters[i]->finish();
      results[i].runs = runs;
    }
  }
  return results;
}

}  // namespace chitu::cli
