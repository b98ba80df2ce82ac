// SPDX-License-Identifier: Apache-2.0
// chitu run: attention of tensors in files, into files.
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>

#include "chitu/chitu.h"
#include "cli/commands/commands.h"
#include "cli/commands/options.h"
#include "cli/files/files.h"
#include "cli/measure/gpu.h"
#include "cli/measure/workload.h"
#include "cli/ranks/ranks.h"
#include "cli/words.h"

namespace chitu::cli {
namespace {

constexpr std::string_view npy = ".npy", safetensors = ".safetensors";

struct Words {
  std::string query, key, value, input;
  std::string out, lse;
  std::string method = "chitu", kernel, layout = "bhsd", window, device = "cpu";
  bool causal = false;
  std::optional<float> scale{};
  std::optional<int> threads{};
  RanksFlags ranks{};
};

struct Inputs {
  HostTensor query, key, value;  // sizes in the order of the files' layout
};

Inputs read_inputs(const Words& words) {
  if (words.input.empty()) {
    require(!words.query.empty() && !words.key.empty() && !words.value.empty(),
            "no input: give --q, --k and --v (.npy), or --input (.safetensors with q, k and v)");
    return {read_npy(words.query), read_npy(words.key), read_npy(words.value)};
  }
  const std::string names[] = {"q", "k", "v"};
  auto tensors = read_safetensors(words.input, names, Others::refused);
  return {tensors.at("q"), tensors.at("k"), tensors.at("v")};
}

Options options_of(const Words& words) {
  return {.recipe = find_method(words.method).recipe,
          .window = window_of(words.causal, words.window),
          .scale = words.scale,
          .threads = words.threads.value_or(0),
          .kernel = words.kernel};
}

// The file for a result of this type. A file that could not be written is refused here, before the work is done.
std::unique_ptr<NewFile> result_file(const std::string& option, const std::string& path, DType type) {
  const std::string extension = std::filesystem::path(path).extension().string();
  require(extension == npy || extension == safetensors, option, " ", path, " must end in .npy or .safetensors");
  require(extension != npy || type != DType::bf16, option, " ", path,
          " would hold bf16, which .npy does not have; give a .safetensors file");
  return std::make_unique<NewFile>(path);
}

void write(NewFile& file, const NamedTensor& named) {
  if (file.path().extension() == npy)
    write_npy(file, named.tensor, named.rank);
  else
    write_safetensors(file, {&named, 1});
}

void attend_on_gpu(const Inputs& inputs, std::string_view layout, const HostTensor& out, const HostTensor& lse, const Options& options) {
  const auto view = [&](const gpu::GpuTensor& x) { return as_bhsd(x.tensor, layout); };
  const gpu::GpuTensor query = gpu::upload(inputs.query.tensor), key = gpu::upload(inputs.key.tensor),
                       value = gpu::upload(inputs.value.tensor), gpu_out = gpu::allocate(out.tensor.type, out.tensor.shape),
                       gpu_lse = lse.tensor.data ? gpu::allocate(DType::f32, lse.tensor.shape) : gpu::GpuTensor{};
  attention(view(query), view(key), view(value), {view(gpu_out), gpu_lse.tensor}, options);
  gpu::download(gpu_out, out.tensor);
  if (lse.tensor.data) gpu::download(gpu_lse, lse.tensor);
}

struct ResultFiles {
  std::unique_ptr<NewFile> out, lse;
};

// world: null, or this process is one of its ranks; rank 0 then has the files for the results.
void run(const Words& words, World* world) {
  const bool writes = !world || world->rank() == 0;
  Inputs inputs;
  ResultFiles files;
  Options options;
  Device device = Device::cpu;
  HostTensor out, lse;
  const auto view = [&](const HostTensor& host) { return as_bhsd(host.tensor, words.layout); };
  together(world, [&] {
    require(words.device == "cpu" || !words.threads, "--threads is for --device cpu; a GPU uses all of itself");
    require(words.device == "cpu" || !world, "--ranks is for --device cpu");
    device = device_of(words.device);
    require(!words.out.empty(), "--out is missing: the file for the result, .npy or .safetensors");
    options = options_of(words);
    inputs = read_inputs(words);
    const Tensor query = view(inputs.query);
    if (writes) {
      files.out = result_file("--out", words.out, query.type);
      if (!words.lse.empty()) files.lse = result_file("--lse", words.lse, DType::f32);
      require(!files.lse || files.lse->target() != files.out->target(), "--out and --lse are one file, ", words.lse);
    }
    out = allocate(query.type, inputs.query.tensor.shape);
    if (!words.lse.empty()) lse = allocate(DType::f32, {query.shape[0], query.shape[1], query.shape[2], 1});
  });
  const Tensor query = view(inputs.query), key = view(inputs.key), value = view(inputs.value);
  if (world)
    world->attend(query, key, value, {view(out), lse.tensor}, options);
  else if (device == Device::cuda)
    attend_on_gpu(inputs, words.layout, out, lse, options);
  else
    attention(query, key, value, {view(out), lse.tensor}, options);
  together(world, [&] {
    if (!writes) return;
    write(*files.out, {.name = "out", .tensor = out.tensor});
    if (files.lse) write(*files.lse, {.name = "lse", .tensor = lse.tensor, .rank = 3});
    files.out->publish();
    if (files.lse) files.lse->publish();
  });
}

}  // namespace

void add_run(CLI::App& app) {
  auto words = std::make_shared<Words>();
  CLI::App* command = app.add_subcommand("run", "Attention of tensors in files: softmax(scale q k^T) v");
  CLI::Option* query = command->add_option("--q", words->query, "Queries, .npy [batch, heads, tokens, dim], f32 or f16");
  CLI::Option* key = command->add_option("--k", words->key, "Keys, .npy");
  CLI::Option* value = command->add_option("--v", words->value, "Values, .npy");
  command
      ->add_option(
          "--input", words->input,
          "A .safetensors file with q, k and v instead: f32, f16 or bf16. Any other tensor is refused by name, but for out, lse and "
          "NAME.q, NAME.k, NAME.v")
      ->excludes(query)
      ->excludes(key)
      ->excludes(value);
  command->add_option("--out", words->out, "Result, .npy or .safetensors (tensor out): type and layout of the queries; must be given");
  command->add_option("--lse", words->lse, "Log-sum-exp, .npy or .safetensors (tensor lse): f32 [batch, heads, queries]");
  command->add_option("--method", words->method, "Quantisation method (chitu methods lists them)")->capture_default_str();
  command->add_option("--layout", words->layout, "Order of the files' sizes: bhsd or bshd")->capture_default_str();
  command->add_flag("--causal", words->causal, "No query sees a later key; the last query stands at the last key");
  command->add_option("--window", words->window, "LEFT,RIGHT: the keys a query sees before and after its own; -1: unbounded");
  command->add_option("--scale", words->scale, "Scale of the scores; 1/sqrt(dim) unless given");
  command->add_option("--threads", words->threads, "CPU threads; 0, and unless given: all");
  add_device(*command, words->device);
  command->add_option("--kernel", words->kernel, "Run this kernel or refuse (chitu methods lists them)");
  add_ranks(*command, words->ranks);
  command->callback([words] {
    if (words->ranks.wanted())
      on_ranks(words->ranks, [&](World& world) { run(*words, &world); });
    else
      run(*words, nullptr);
  });
}

}  // namespace chitu::cli
