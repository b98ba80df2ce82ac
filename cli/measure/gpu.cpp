// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/gpu.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "cli/measure/energy.h"
#include "cuda/call.h"
#include "cuda/launch.h"
#include "dispatch.h"

namespace chitu::cli::gpu {
namespace {

using cuda::check;

constexpr int device = 0;

// The driver's management library, which is installed beside it. It is opened at run time; without it the clock, the energy and the
// version are unknown.
class Nvml {
 public:
  explicit Nvml(int index) {
    if (!library_ || call<int()>("nvmlInit_v2") != 0) return;
    std::array<char, 32> bus{};
    if (cudaDeviceGetPCIBusId(bus.data(), bus.size(), index) != cudaSuccess) return;
    if (call<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2", bus.data(), &device_) != 0) device_ = nullptr;
  }
  Nvml(const Nvml&) = delete;
  ~Nvml() {
    if (library_) dlclose(library_);
  }

  std::string driver() const {
    std::array<char, 96> text{};
    const bool known = library_ && call<int(char*, unsigned)>("nvmlSystemGetDriverVersion", text.data(), 96u) == 0;
    return known ? text.data() : "unknown";
  }

  std::optional<int> sm_mhz() const {
    constexpr int sm_clock = 1;
    unsigned mhz = 0;
    if (!device_ || call<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo", device_, sm_clock, &mhz) != 0) return {};
    return static_cast<int>(mhz);
  }

  // What the GPU has used since its driver was loaded.
  std::optional<std::uint64_t> millijoules() const {
    unsigned long long used = 0;
    if (!device_ || call<int(void*, unsigned long long*)>("nvmlDeviceGetTotalEnergyConsumption", device_, &used) != 0) return {};
    return used;
  }

 private:
  template <class Function, class... Arguments>
  int call(const char* name, Arguments... arguments) const {
    constexpr int missing = -1;
    auto* function = reinterpret_cast<Function*>(dlsym(library_, name));
    return function ? function(arguments...) : missing;
  }

  void* library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW);
  void* device_ = nullptr;
};

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

// From the first element to the last.
std::size_t span_bytes(const Tensor& t) {
  std::int64_t elements = 1;
  for (std::size_t i = 0; i < 4; ++i) {
    if (t.shape[i] == 0) return 0;
    elements += (t.shape[i] - 1) * t.stride[i];
  }
  return static_cast<std::size_t>(elements * bytes(t.type));
}

GpuTensor memory_for(Tensor t) {
  t.device = Device::cuda;
  t.device_id = device;
  void* memory = nullptr;
  check(cudaSetDevice(device));
  check(cudaMalloc(&memory, std::max<std::size_t>(span_bytes(t), 1)));
  t.data = memory;
  return {std::shared_ptr<void>(memory, [](void* p) { (void)cudaFree(p); }), t};
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  ~Event() { (void)cudaEventDestroy(event_); }
  void record() const { check(cudaEventRecord(event_)); }
  void wait() const { check(cudaEventSynchronize(event_)); }
  bool passed() const {
    const cudaError_t state = cudaEventQuery(event_);
    if (state != cudaErrorNotReady) check(state);
    return state == cudaSuccess;
  }
  double milliseconds_since(const Event& start) const {
    wait();
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start.event_, event_));
    return ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// The events of one run: the two steps, the whole call, the copy.
struct Marks {
  Event start, quantised, attended, whole_start, whole_end, copied;
};

// What all methods share: operands in GPU memory, where they write, both ends of a copy, and copies of the results in CPU memory.
struct Tensors {
  GpuTensor query, key, value, out, lse, copy_from, copy_to;
  HostTensor host_out, host_lse;
};

// Times calls by the GPU's own events. Calls are queued without waiting for earlier ones, so the host's work between them is not timed.
class GpuMeter : public Meter {
 public:
  GpuMeter(const Workload& w, const Method& method, const Truth& truth, std::shared_ptr<const Tensors> tensors)
      : Meter(method),
        workload_(w),
        truth_(truth),
        tensors_(std::move(tensors)),
        options_{.recipe = method.recipe, .window = w.window, .kernel = w.kernel} {}

  double warm_up() override {
    const Tensors& t = *tensors_;
    quantize_operands();
    if (const std::string why = refusal(); !why.empty()) throw Error(ErrorCode::unsupported, why);
    for (const GpuTensor* x : {&t.out, &t.lse}) check(cudaMemset(x->memory.get(), 0xff, span_bytes(x->tensor)));
    const Event start, first, second;
    start.record();
    attention(query(), key(), value(), {t.out.tensor, t.lse.tensor}, options_);
    first.record();
    call_ms_ = first.milliseconds_since(start);
    result_.errors = compare(results(), truth_);
    if (call_ms_ > long_ms) return call_ms_;
    first.record();  // the first call may have loaded the kernels
    call();
    second.record();
    return call_ms_ = second.milliseconds_since(first);
  }

  void run() override {
    // Stays two runs ahead of the GPU: enough that it never waits, and little enough that the progress bar is true.
    if (marks_.size() >= 2) marks_[marks_.size() - 2]->whole_end.wait();
    // An idle GPU would wait for the host inside the timed span, at a low clock. Queue other calls first.
    if (cudaStreamQuery(nullptr) == cudaSuccess)
      for (double ms = 0; ms + call_ms_ < lead_ms; ms += call_ms_) call();
    const Marks& m = *marks_.emplace_back(std::make_unique<Marks>());
    const cuda::Call steps(problem());
    result_.attention_quantises_queries = steps.attention_quantizes_queries();
    m.start.record();
    steps.quantize();
    m.quantised.record();
    steps.attend();
    m.attended.record();
    m.whole_start.record();
    call();
    m.whole_end.record();
    if (const std::size_t bytes = copied_bytes()) {
      check(cudaMemcpyAsync(tensors_->copy_to.memory.get(), tensors_->copy_from.memory.get(), bytes, cudaMemcpyDeviceToDevice));
      m.copied.record();
    }
  }

  void rest(std::chrono::milliseconds time) override {
    check(cudaDeviceSynchronize());
    Meter::rest(time);
  }

  Measurement finish() override {
    result_.sm_mhz = clock_under_way();
    result_.joules = joules_under_way();
    require_unchanged(result_, results(), truth_);
    std::vector<double> quantise, attend, total, copy;
    for (const auto& m : marks_) {
      quantise.push_back(m->quantised.milliseconds_since(m->start));
      attend.push_back(m->attended.milliseconds_since(m->quantised));
      total.push_back(m->whole_end.milliseconds_since(m->whole_start));
      if (copied_bytes()) copy.push_back(m->copied.milliseconds_since(m->whole_end));
    }
    if (!copy.empty()) result_.copy = spread_of(copy);
    result_.quantise = spread_of(quantise);
    result_.attention = spread_of(attend);
    result_.total = spread_of(total);
    return result_;
  }

 private:
  static constexpr double long_ms = 1000;          // a call this long needs no second one to warm up
  static constexpr double lead_ms = 20;            // of other calls, queued before a timed span on an idle GPU
  static constexpr double clock_ms = 200;          // of work under way while the clock is read
  static constexpr double batch_ms = 10;           // of calls queued at a time while energy is read
  static constexpr double energy_limit_ms = 3000;  // a counter that has not moved enough by then tells nothing

  // Reading and writing so many bytes moves as much as the quantise step must.
  std::size_t copied_bytes() const {
    return static_cast<std::size_t>(quantise_bytes(workload_, *result_.method, !result_.attention_quantises_queries) / 2);
  }

  void call() const { attention(query(), key(), value(), tensors_->out.tensor, options_); }

  // Each as a tensor, or quantised before anything is timed.
  Operand operand(Role role, const Tensor& tensor, const Quantized& quantized) const {
    return workload_.is_quantized(role) ? Operand(quantized) : Operand(tensor);
  }
  Operand query() const { return operand(Role::query, tensors_->query.tensor, query_); }
  Operand key() const { return operand(Role::key, tensors_->key.tensor, key_); }
  Operand value() const { return operand(Role::value, tensors_->value.tensor, value_); }

  void quantize_operands() {
    if (workload_.quantized.empty()) return;
    const Tensors& t = *tensors_;
    const Recipe& recipe = options_.recipe;
    key_ = quantize(t.key.tensor, Role::key, recipe);  // the others may need it
    if (workload_.is_quantized(Role::value))
      value_ = quantize(t.value.tensor, Role::value, recipe, {.keys = recipe.key.sorted ? &key_ : nullptr});
    if (workload_.is_quantized(Role::query))
      query_ = quantize(t.query.tensor, Role::query, recipe, {.keys = workload_.is_quantized(Role::key) ? &key_ : nullptr});
  }

  Problem problem() const { return describe(query(), key(), value(), tensors_->out.tensor, options_); }

  // Why no GPU kernel takes the call, each reason once; empty if one does.
  std::string refusal() const {
    const Problem p = problem();
    std::vector<std::string> reasons;
    for (const Kernel& k : kernel_table()) {
      if (k.device != Device::cuda) continue;
      const std::string why = chitu::refusal(k, p);
      if (why.empty()) return {};
      const std::string reason = fmt::format("{}: {}", k.name, why);
      if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) reasons.push_back(reason);
    }
    return fmt::format("{}", fmt::join(reasons, "; "));
  }

  Output results() const {
    download(tensors_->out, tensors_->host_out.tensor);
    download(tensors_->lse, tensors_->host_lse.tensor);
    return {tensors_->host_out.tensor, tensors_->host_lse.tensor};
  }

  // The clock while the last run is under way. If that run would be over too soon, more calls follow it.
  std::optional<int> clock_under_way() const {
    marks_.back()->start.wait();
    const auto begin = std::chrono::steady_clock::now();
    for (double ms = call_ms_; ms < clock_ms; ms += call_ms_) call();
    std::this_thread::sleep_until(begin + std::chrono::duration<double, std::milli>(clock_ms / 2));
    return nvml().sm_mhz();
  }

  // The mean power under calls back to back, times the time of one of them.
  std::optional<double> joules_under_way() const {
    if (!nvml().millijoules()) return {};
    check(cudaDeviceSynchronize());
    const auto begin = std::chrono::steady_clock::now();
    const auto now = [&] { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count(); };
    EnergyReadings readings;
    const auto read = [&] {
      if (const auto used = nvml().millijoules()) readings.add(now(), *used);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    const int batch = std::max(1, static_cast<int>(batch_ms / std::max(call_ms_, 1e-3)));
    const Event start;
    const std::array<Event, 2> ends;  // two batches are queued at any time, so that the GPU never rests
    start.record();
    std::int64_t batches = 0;
    for (; batches < 2 || (!readings.enough() && now() < energy_limit_ms); ++batches) {
      const Event& end = ends[static_cast<std::size_t>(batches % 2)];
      for (bool waits = batches >= 2; waits; waits = !end.passed()) read();
      for (int i = 0; i < batch; ++i) call();
      end.record();
    }
    const Event& last = ends[static_cast<std::size_t>((batches - 1) % 2)];
    while (!readings.enough() && !last.passed()) read();  // two long calls may last beyond the limit
    const double call_ms = last.milliseconds_since(start) / static_cast<double>(batches * batch);
    if (!readings.enough()) return {};
    return readings.watts() * call_ms / 1000;
  }

  static const Nvml& nvml() {
    static const Nvml library(device);
    return library;
  }

  const Workload& workload_;
  const Truth& truth_;
  std::shared_ptr<const Tensors> tensors_;
  Options options_;
  Quantized query_, key_, value_;  // those that Workload::quantized names
  double call_ms_ = 0;
  std::vector<std::unique_ptr<Marks>> marks_;
};

}  // namespace

std::vector<Info> all() {
  int count = 0, runtime = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  check(cudaRuntimeGetVersion(&runtime));
  std::vector<Info> result;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, i));
    result.push_back({p.name, fmt::format("{}.{}", p.major, p.minor), static_cast<std::int64_t>(p.totalGlobalMem), p.multiProcessorCount,
                      Nvml(i).driver(), version_text(runtime)});
  }
  return result;
}

std::string why_none() {
  int count = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  return std::string("there is no GPU to use: ") + (e == cudaSuccess ? "the driver shows none" : cudaGetErrorString(e));
}

void require_one() {
  if (all().empty()) throw Error(ErrorCode::unsupported, "--device cuda: " + why_none() + "; give --device cpu");
}

GpuTensor allocate(DType type, const Shape& shape) {
  GpuTensor t = memory_for(dense(nullptr, type, shape));
  check(cudaMemset(t.memory.get(), 0xff, span_bytes(t.tensor)));
  return t;
}

GpuTensor upload(const Tensor& tensor) {
  GpuTensor t = memory_for(tensor);
  check(cudaMemcpy(t.memory.get(), tensor.data, span_bytes(tensor), cudaMemcpyHostToDevice));
  return t;
}

void download(const GpuTensor& from, const Tensor& to) {
  check(cudaDeviceSynchronize());  // waits for calls on all streams, not only on the default one
  check(cudaMemcpy(to.data, from.memory.get(), span_bytes(from.tensor), cudaMemcpyDeviceToHost));
}

Meters meters(const Workload& w, std::span<const Method* const> methods, const Truth& truth) {
  const Shape& q = w.query.shape;
  const Shape lse{q[0], q[1], q[2], 1};
  double moved = 0;
  for (const Method* method : methods) moved = std::max(moved, quantise_bytes(w, *method, true));
  const Shape copied{1, 1, 1, static_cast<std::int64_t>(moved / 2)};
  const auto tensors = std::make_shared<Tensors>(
      Tensors{upload(w.query), upload(w.key), upload(w.value), allocate(w.query.type, q), allocate(DType::f32, lse),
              allocate(DType::i8, copied), allocate(DType::i8, copied), cli::allocate(w.query.type, q), cli::allocate(DType::f32, lse)});
  Meters result;
  for (const Method* method : methods) result.push_back(std::make_unique<GpuMeter>(w, *method, truth, tensors));
  return result;
}

}  // namespace chitu::cli::gpu
