// SPDX-License-Identifier: Apache-2.0
// chitu explain, methods and doctor: what would run, what there is, and whether it works on this machine.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands/commands.h"
#include "cli/commands/methods_page.h"
#include "cli/commands/options.h"
#include "cli/commands/self_test.h"
#include "cli/measure/gpu.h"
#include "cli/measure/machine.h"
#include "cli/measure/workload.h"
#include "cli/words.h"
#include "common/parallel.h"

namespace chitu::cli {
namespace {

struct ExplainFlags {
  std::string method = "chitu", kernel, dtype, window, queries = "4K", keys, device = "cpu";
  std::int64_t batch = 1, heads = 8, kv_heads = 0, dim = 128;
  bool causal = false, lse = false;
};

void explain_call(const ExplainFlags& flags) {
  const std::int64_t queries = count_of("--queries", flags.queries, 0);
  const std::int64_t keys = flags.keys.empty() ? queries : count_of("--keys", flags.keys, 0);
  const bool gpu = device_of(flags.device) == Device::cuda;
  const DType type = dtype_of(!flags.dtype.empty() ? flags.dtype : gpu ? "bf16" : "f32");
  // explain() asks whether there is data and where it is, but reads none.
  static float no_data;
  const gpu::GpuTensor on_gpu = gpu ? gpu::allocate(type, {1, 1, 1, 1}) : gpu::GpuTensor{};
  const auto tensor = [&](DType of, const Shape& shape) {
    Tensor t = gpu ? on_gpu.tensor : dense(&no_data, of, shape);
    t.type = of;
    t.shape = shape;
    t.stride = contiguous_strides(shape);
    return t;
  };
  const Tensor query = tensor(type, {flags.batch, flags.heads, queries, flags.dim});
  const Tensor key = tensor(type, {flags.batch, flags.kv_heads ? flags.kv_heads : flags.heads, keys, flags.dim});
  const Tensor lse = flags.lse ? tensor(DType::f32, {flags.batch, flags.heads, queries, 1}) : Tensor{};
  const Options options{
      .recipe = find_method(flags.method).recipe, .window = window_of(flags.causal, flags.window), .kernel = flags.kernel};
  fmt::print("{}", explain(query, key, key, {query, lse}, options));
}

struct DoctorFlags {
  int threads = 0;
  std::string json;
};

constexpr int unwell = 1;  // exit status

Json json_of(const SelfTest& t) {
  return {{"kernel", t.kernel},
          {"method", t.method},
          {"dtype", t.dtype},
          {"rel_l1", t.refused ? Json() : json_number(t.relative_l1)},
          {"lse_max_diff", t.refused ? Json() : json_number(t.lse_max_diff)},
          {"refused", t.refused},
          {"passed", t.passed}};
}

std::string gpus_text() {
  const auto gpus = gpu::all();
  if (gpus.empty()) return "GPU: " + gpu::why_none() + "\n";
  Table table{.header = {"GPU", "compute capability", "multiprocessors", "memory", "driver", "CUDA"}, .rows = {}, .text = true};
  for (const gpu::Info& g : gpus)
    table.rows.push_back({g.name, g.compute_capability, std::to_string(g.multiprocessors),
                          fmt::format("{:.1f} GiB", static_cast<double>(g.bytes) / 0x1p30), g.driver, g.cuda});
  return table.markdown();
}

Table instruction_table() {
  Table table{.header = {"instructions", "found", "used by"}, .rows = {}, .text = true};
  for (const InstructionSet& s : instruction_sets())
    table.rows.push_back({std::string(s.name), s.found ? "yes" : "no", std::string(s.used_by)});
  return table;
}

Table kernel_table() {
  Table table{.header = {"kernel", "query . key in", "weights . values in", "can run here"}, .rows = {}, .text = true};
  for (const KernelInfo& k : kernels())
    table.rows.push_back({std::string(k.name), std::string(k.scores), std::string(k.weights),
                          k.available                ? "yes"
                          : k.device == Device::cuda ? "no: there is no GPU of its architecture"
                                                     : "no: this machine lacks its instructions"});
  return table;
}

Table test_table(const std::vector<SelfTest>& tests) {
  Table table{.header = {"kernel", "method", "dtype", "rel L1 to its recipe", "LSE max diff", "result"}, .rows = {}, .text = true};
  for (const SelfTest& t : tests)
    table.rows.push_back({t.kernel, t.method, t.dtype, t.refused ? "-" : scientific(t.relative_l1),
                          t.refused ? "-" : scientific(t.lse_max_diff),
                          t.refused  ? "not taken"
                          : t.passed ? "pass"
                                     : "FAIL"});
  return table;
}

void doctor(const DoctorFlags& flags) {
  ReportFile json_file("--json", flags.json);
  const int threads = thread_count(flags.threads);
  fmt::print("chitu {}, {}\nCPU: {}, {}\n\n{}\n{}\n{}\n", CHITU_VERSION, compiler(), cpu_model(), count(threads, "thread"),
             instruction_table().markdown(), gpus_text(), kernel_table().markdown());
  const std::vector<SelfTest> tests = run_self_tests(threads);
  const bool well = all_passed(tests);
  fmt::print(
      "Each method on each kernel, against double precision reading the same recipe (at most {:g}, LSE {:g}; on a GPU {:g}, {:g}):"
      "\n\n{}\n{}\n",
      cpu_bound.relative_l1, cpu_bound.lse, gpu_bound.relative_l1, gpu_bound.lse, test_table(tests).markdown(),
      well ? "All passed." : "Some FAILED: do not trust this build here.");
  if (json_file.wanted()) {
    Json report{{"machine", machine_json(Device::cpu, threads, "")},
                {"gpus", Json::array()},
                {"kernels", Json::array()},
                {"self_tests", Json::array()},
                {"passed", well}};
    for (const gpu::Info& g : gpu::all()) report["gpus"].push_back(gpu_json(g));
    for (const KernelInfo& k : kernels())
      report["kernels"].push_back({{"name", k.name}, {"scores", k.scores}, {"weights", k.weights}, {"available", k.available}});
    for (const SelfTest& t : tests) report["self_tests"].push_back(json_of(t));
    json_file.write(report.dump(2) + "\n");
  }
  if (!well) throw CLI::RuntimeError(unwell);
}

}  // namespace

void add_explain(CLI::App& app) {
  auto flags = std::make_shared<ExplainFlags>();
  CLI::App* command = app.add_subcommand("explain", "Which kernel runs a call, and why those tried before it do not");
  command->add_option("--method", flags->method, "Quantisation method (chitu methods lists them)")->capture_default_str();
  command->add_option("--batch", flags->batch, "Batch")->capture_default_str();
  command->add_option("--heads", flags->heads, "Query heads")->capture_default_str();
  command->add_option("--kv-heads", flags->kv_heads, "Key and value heads; as many as query heads unless given")
      ->check(CLI::Range(1, most_heads));
  command->add_option("--queries", flags->queries, "Queries, like 512 or 4K")->capture_default_str();
  command->add_option("--keys", flags->keys, "Keys; as many as queries unless given");
  command->add_option("--dim", flags->dim, "Channels of a head")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "Type of the tensors: f32, f16 or bf16; f32 on a CPU, bf16 on a GPU unless given");
  command->add_flag("--causal", flags->causal, "No query sees a later key");
  command->add_option("--window", flags->window, "LEFT,RIGHT: the keys a query sees before and after its own; -1: unbounded");
  command->add_flag("--lse", flags->lse, "The log-sum-exp is asked for too");
  add_device(*command, flags->device);
  command->add_option("--kernel", flags->kernel, "Only this kernel");
  command->callback([flags] { explain_call(*flags); });
}

void add_methods(CLI::App& app) {
  auto markdown = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("methods", "The quantisation methods and kernels of this build");
  command->add_flag("--markdown", *markdown, "Print docs/methods.md");
  command->callback([markdown] {
    if (*markdown)
      fmt::print("{}", methods_page());
    else
      fmt::print("{}\n{}", methods_table(), kernels_table());
  });
}

void add_doctor(CLI::App& app) {
  auto flags = std::make_shared<DoctorFlags>();
  CLI::App* command = app.add_subcommand("doctor",
                                         "This machine and build, and whether every kernel computes what it should. Exit status 1 "
                                         "when one does not");
  command->add_option("--threads", flags->threads, "CPU threads; 0: all")->capture_default_str()->check(CLI::Range(0, max_threads));
  command->add_option("--json", flags->json, "Write the findings here as well");
  command->callback([flags] { doctor(*flags); });
}

}  // namespace chitu::cli
