// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/machine.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "chitu/chitu.h"

namespace chitu::cli {

#ifdef __x86_64__
namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

}  // namespace

std::string cpu_model() {
  std::string model;
  for (unsigned leaf = 0x80000002u; leaf <= 0x80000004u; ++leaf) {
    const Registers r = cpuid(leaf);
    model.append(reinterpret_cast<const char*>(&r), sizeof r);
  }
  model = model.c_str();  // up to the first 0
  model.erase(0, model.find_first_not_of(' '));
  model.erase(model.find_last_not_of(' ') + 1);
  return model.empty() ? "unknown x86-64 CPU" : model;
}

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> all{
      {"avx2", __builtin_cpu_supports("avx2") != 0, "cpu.avx2"},
      {"fma", __builtin_cpu_supports("fma") != 0, "cpu.avx2"},
      {"f16c", (cpuid(1).c >> 29 & 1) != 0, "cpu.avx2"},  // clang 14's __builtin_cpu_supports does not know it, nor bf16
      {"avxvnni", (cpuid(7, 1).a >> 4 & 1) != 0, "cpu.avxvnni"},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0, "cpu.avx512"},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0, "cpu.avx512"},
      {"avx512dq", __builtin_cpu_supports("avx512dq") != 0, "cpu.avx512"},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0, "cpu.avx512"},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0, "cpu.avx512"},
      {"avx512bf16", (cpuid(7, 1).a >> 5 & 1) != 0, "cpu.avx512 in bf16"},
      {"amx-tile", (cpuid(7).d >> 24 & 1) != 0, "cpu.amx"},
      {"amx-int8", (cpuid(7).d >> 25 & 1) != 0, "cpu.amx"},
      {"amx-bf16", (cpuid(7).d >> 22 & 1) != 0, "cpu.amx"},
  };
  return all;
}
#else
std::string cpu_model() {
  utsname system{};
  uname(&system);
  return fmt::format("{} CPU", system.machine);
}

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> none;
  return none;
}
#endif

std::string compiler() {
#ifdef __clang__
  return fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
}

std::string_view best_kernel() {
  static const auto all = kernels();
  for (const KernelInfo& k : all)
    if (k.available && k.device == Device::cpu) return k.name;
  return "none";
}

std::string machine_text(Device device, int threads, std::string_view kernel) {
  const std::string build = fmt::format("{}, chitu {}", compiler(), CHITU_VERSION);
  if (device == Device::cuda) {
    const gpu::Info g = gpu::all().front();
    return fmt::format("{} ({:.0f} GB, compute capability {}), driver {}, CUDA {}, {}", g.name, static_cast<double>(g.bytes) / 0x1p30,
                       g.compute_capability, g.driver, g.cuda, build);
  }
  return fmt::format("{}, {}, {}, {}", cpu_model(), count(threads, "thread"), kernel.empty() ? best_kernel() : kernel, build);
}

Json gpu_json(const gpu::Info& g) {
  return {{"name", g.name},     {"compute_capability", g.compute_capability},
          {"bytes", g.bytes},   {"multiprocessors", g.multiprocessors},
          {"driver", g.driver}, {"cuda", g.cuda}};
}

Json machine_json(Device device, int threads, std::string_view kernel) {
  Json sets = Json::array();
  for (const InstructionSet& s : instruction_sets())
    if (s.found) sets.push_back(s.name);
  Json json{{"cpu", cpu_model()},
            {"threads", threads},
            {"instruction_sets", sets},
            {"kernel", kernel.empty() && device == Device::cpu ? best_kernel() : kernel},
            {"compiler", compiler()},
            {"version", CHITU_VERSION},
            {"gpu", nullptr}};
  if (device == Device::cuda) json["gpu"] = gpu_json(gpu::all().front());
  return json;
}

}  // namespace chitu::cli
