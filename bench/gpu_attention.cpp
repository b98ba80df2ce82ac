// SPDX-License-Identifier: Apache-2.0
// Times the GPU's attention: the quantise pass, the attention kernel, and attention() as a whole, from random normal bf16 tensors of 32768
// tokens and 2048 channels. Medians by events; prints Markdown, and CSV to the file named as the argument.
//
//   gpu_attention [results.csv]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "chitu/chitu.h"
#include "common/numbers.h"
#include "cuda/sm90/row.h"
#include "dispatch.h"

namespace {

using namespace chitu;

constexpr std::int64_t tokens = 32768, channels = 2048;
constexpr int warm_up = 5, runs = 31;

void check(cudaError_t e) {
  if (e != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(e));
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { (void)cudaEventDestroy(event_); }
  void record() { check(cudaEventRecord(event_)); }
  double microseconds_since(const Event& start) const {
    float ms = 0;
    check(cudaEventSynchronize(event_));
    check(cudaEventElapsedTime(&ms, start.event_, event_));
    return ms * 1e3;
  }

 private:
  cudaEvent_t event_;
};

// A tensor of normal numbers, repeated with a period that no tile divides.
class Input {
 public:
  explicit Input(std::uint64_t seed) {
    constexpr std::int64_t count = tokens * channels, period = 8'000'003;
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> numbers(static_cast<std::size_t>(period));
    for (auto& x : numbers) x = f32_to_bf16(normal(random));
    check(cudaMalloc(&data_, count * 2));
    for (std::int64_t at = 0; at < count; at += period)
      check(cudaMemcpy(static_cast<std::uint16_t*>(data_) + at, numbers.data(), static_cast<std::size_t>(std::min(period, count - at)) * 2,
                       cudaMemcpyHostToDevice));
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() { (void)cudaFree(data_); }
  Tensor as(const Shape& shape) const { return {data_, DType::bf16, Device::cuda, 0, shape, contiguous_strides(shape)}; }

 private:
  void* data_ = nullptr;
};

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

std::string output_of(const char* command) {
  std::string text;
  FILE* pipe = popen(command, "r");
  if (!pipe) return "unknown";
  char line[256];
  while (fgets(line, sizeof line, pipe)) text += line;
  pclose(pipe);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? "unknown" : text;
}

struct Row {
  std::int64_t dim, length;
  bool is_causal;
  double quantise, attention, total, fastest, slowest;  // µs; the last two of total
  std::string clock;
  double tflops(double microseconds) const {
    const double pairs =
        is_causal ? 0.5 * static_cast<double>(length) * static_cast<double>(length + 1) : static_cast<double>(length * length);
    return 4 * pairs * static_cast<double>(tokens / length * channels) / microseconds * 1e-6;
  }
};

Row measure(const std::array<const Input*, 4>& memory, std::int64_t dim, std::int64_t length, bool is_causal) {
  const Shape shape{tokens / length, channels / dim, length, dim};
  const Tensor q = memory[0]->as(shape), k = memory[1]->as(shape), v = memory[2]->as(shape), out = memory[3]->as(shape);
  const Options options{.window = is_causal ? causal : everything, .kernel = "cuda.sm90"};
  // All of a kind under way at once, so that what the host does between them is not in the times.
  struct Marks {
    Event start, middle, end;
  };
  std::array<Marks, warm_up + runs> parts, whole;
  for (Marks& m : parts) {
    const cuda::sm90::Call call(describe(q, k, v, out, options));
    m.start.record();
    call.quantise();
    m.middle.record();
    call.attend();
    m.end.record();
  }
  for (Marks& m : whole) {
    m.start.record();
    attention(q, k, v, out, options);
    m.end.record();
  }
  std::vector<double> quantise, attend, total;
  for (std::size_t i = warm_up; i < parts.size(); ++i) {
    quantise.push_back(parts[i].middle.microseconds_since(parts[i].start));
    attend.push_back(parts[i].end.microseconds_since(parts[i].middle));
    total.push_back(whole[i].end.microseconds_since(whole[i].start));
  }
  Row row{dim,
          length,
          is_causal,
          median(quantise),
          median(attend),
          median(total),
          *std::min_element(total.begin(), total.end()),
          *std::max_element(total.begin(), total.end()),
          {}};
  for (double busy = 0; busy < 6e5; busy += row.total) attention(q, k, v, out, options);  // 0.6 s under way while the clock is read
  row.clock = output_of("nvidia-smi --id=0 --query-gpu=clocks.sm --format=csv,noheader,nounits");
  check(cudaDeviceSynchronize());
  return row;
}

void run(const char* file) {
  const std::string gpu = output_of("nvidia-smi --id=0 --query-gpu=name,driver_version --format=csv,noheader");
  std::printf("GPU, driver: %s. %lld tokens x %lld channels, bf16, medians of %d.\n\n", gpu.c_str(), static_cast<long long>(tokens),
              static_cast<long long>(channels), runs);
  std::printf("| D | heads | S | mask | quantise µs | attention µs | total µs (min, max) | attention TFLOPS | total TFLOPS | SM MHz |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|\n");
  FILE* csv = file ? std::fopen(file, "w") : nullptr;
  if (file && !csv) throw std::runtime_error(std::string("cannot write ") + file);
  if (csv) {
    std::fprintf(csv, "# bench/gpu_attention FILE; %s; chitu %s; 32768 tokens; bf16; medians of %d\n", gpu.c_str(), CHITU_VERSION, runs);
    std::fprintf(
        csv, "dim,heads,length,causal,quantise_us,attention_us,total_us,total_min_us,total_max_us,attention_tflops,total_tflops,sm_mhz\n");
  }
  const Input q(1), k(2), v(3), out(4);
  for (const std::int64_t dim : {128, 64})
    for (const bool is_causal : {false, true})
      for (const std::int64_t length : {1024, 4096, 16384}) {
        const Row r = measure({&q, &k, &v, &out}, dim, length, is_causal);
        std::printf("| %d | %d | %d | %s | %.1f | %.1f | %.1f (%.1f, %.1f) | %.0f | %.0f | %s |\n", static_cast<int>(dim),
                    static_cast<int>(channels / dim), static_cast<int>(length), is_causal ? "causal" : "none", r.quantise, r.attention,
                    r.total, r.fastest, r.slowest, r.tflops(r.attention), r.tflops(r.total), r.clock.c_str());
        if (csv)
          std::fprintf(csv, "%d,%d,%d,%d,%.2f,%.2f,%.2f,%.2f,%.2f,%.1f,%.1f,%s\n", static_cast<int>(dim), static_cast<int>(channels / dim),
                       static_cast<int>(length), is_causal, r.quantise, r.attention, r.total, r.fastest, r.slowest, r.tflops(r.attention),
                       r.tflops(r.total), r.clock.c_str());
      }
  if (csv) std::fclose(csv);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run(count > 1 ? arguments[1] : nullptr);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "gpu_attention: %s\n", e.what());
    return 2;
  }
}
