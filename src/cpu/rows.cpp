// SPDX-License-Identifier: Apache-2.0
// The CPU's rows of the kernel table, and what they share.
#include "cpu/rows.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <system_error>

#include "common/numbers.h"

namespace chitu {
namespace {

bool always() { return true; }

#ifdef __x86_64__
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
// Two that clang 14's __builtin_cpu_supports does not know, asked of the processor.
bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}
// Has the processor tiles, and INT8 and bf16 products of them? And does the system save them when it switches threads?
bool ask_processor_for_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0, saved = 0;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, states = 3u << 17;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (bf16 | tile | int8)) != (bf16 | tile | int8))
    return false;
  asm("xgetbv" : "=a"(saved), "=d"(edx) : "c"(0));
  return (saved & states) == states;
}

bool has_tiles() {
  static const bool has = ask_processor_for_tiles();  // in a virtual machine an answer may take longer than a short call
  return has;
}

// Linux gives tiles to processes that ask; 0, or the reason why not. Once asked, a process has them, and all its threads.
int ask_for_tiles() {
#ifdef __linux__
  constexpr long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18 /* XFEATURE_XTILE_DATA */;
  return syscall(SYS_arch_prctl, request, tile_data) == 0 ? 0 : errno;
#else
  return ENOSYS;
#endif
}
int tiles_denied() {
  static const int reason = ask_for_tiles();
  return reason;
}
bool has_amx() { return has_tiles() && tiles_denied() == 0; }

std::string amx_refuses(const Problem&) {
  if (!has_tiles() || !tiles_denied()) return {};
  return "the system denies this process AMX's tiles (arch_prctl, ARCH_REQ_XCOMP_PERM): " + std::generic_category().message(tiles_denied());
}
bool has_avx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

}  // namespace

namespace cpu {

std::span<const Kernel> kernels() {
  using enum Arithmetic;
  using enum Need;
  constexpr Needs takes{
      window,  scale, negative_scale, query_positions, key_positions,   positions_of_sequences, packed_sequences, key_lengths,
      threads, lse,   grouped_heads,  mixed_types,     quantized_query, quantized_key,          quantized_value,  sorted_keys};
  static const std::array rows{
#ifdef __x86_64__
      Kernel{"cpu.amx", Device::cpu, has_amx, int8, int8, takes, amx_runs.int8_int8, amx_refuses},
      Kernel{"cpu.amx", Device::cpu, has_amx, int8, f32, takes, amx_runs.int8_f32, amx_refuses},
      Kernel{"cpu.amx", Device::cpu, has_amx, bf16, bf16, takes, amx_runs.bf16_bf16, amx_refuses},
      // Tiles have no product in fp32.
      Kernel{"cpu.amx", Device::cpu, has_amx, f32, f32, takes, avx512_runs.f32_f32, amx_refuses},
      Kernel{"cpu.avx512", Device::cpu, has_avx512, int8, int8, takes, avx512_runs.int8_int8},
      Kernel{"cpu.avx512", Device::cpu, has_avx512, int8, f32, takes, avx512_runs.int8_f32},
      Kernel{"cpu.avx512", Device::cpu, has_avx512_bf16, bf16, bf16, takes, avx512_runs.bf16_bf16},
      Kernel{"cpu.avx512", Device::cpu, has_avx512, f32, f32, takes, avx512_runs.f32_f32},
      Kernel{"cpu.avxvnni", Device::cpu, has_avxvnni, int8, int8, takes, avxvnni_runs.int8_int8},
      Kernel{"cpu.avxvnni", Device::cpu, has_avxvnni, int8, f32, takes, avxvnni_runs.int8_f32},
      Kernel{"cpu.avxvnni", Device::cpu, has_avxvnni, f32, f32, takes, avxvnni_runs.f32_f32},
      Kernel{"cpu.avx2", Device::cpu, has_avx2, int8, int8, takes, avx2_runs.int8_int8},
      Kernel{"cpu.avx2", Device::cpu, has_avx2, int8, f32, takes, avx2_runs.int8_f32},
      Kernel{"cpu.avx2", Device::cpu, has_avx2, f32, f32, takes, avx2_runs.f32_f32},
#endif
      Kernel{"cpu.portable", Device::cpu, always, int8, int8, takes, portable_runs.int8_int8},
      Kernel{"cpu.portable", Device::cpu, always, int8, f32, takes, portable_runs.int8_f32},
      Kernel{"cpu.portable", Device::cpu, always, f32, f32, takes, portable_runs.f32_f32},
      Kernel{"cpu.reference", Device::cpu, always, any, any, takes, run_reference},
  };
  return rows;
}

std::span<const Backend> backends() {
  static const std::array all{
#ifdef __x86_64__
      Backend{"avx512", has_avx512, to_f32_avx512, quantize_avx512},
      Backend{"avx2", has_avx2, to_f32_avx2, quantize_avx2},
#endif
      Backend{"portable", always, to_f32_portable, quantize_portable},
  };
  return all;
}

const Backend& best_backend() {
  static const Backend& best = *std::find_if(backends().begin(), backends().end(), [](const Backend& b) { return b.available(); });
  return best;
}

Indexed::Indexed(Quantized operand) : Quantized(std::move(operand)) {
  if (quant.scaling != Scaling::tokens && quant.scaling != Scaling::tile) return;
  std::int64_t next = 0;
  for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
    const std::int64_t count = starts[s + 1] - starts[s];
    first.push_back(next);
    next += quant.scaling == Scaling::tile ? tiles_of(count) : quant.groups.count(count);
  }
}

Locator::Locator(const Indexed& x, std::int64_t sequence, std::int64_t head) {
  if (!x.scales.data) return;
  const bool by_token = x.quant.scaling == Scaling::tokens || x.quant.scaling == Scaling::tile;
  const std::int64_t batch = x.starts.empty() ? sequence : 0;
  const std::int64_t first = x.first.empty() ? 0 : x.first[static_cast<std::size_t>(sequence)];
  scales = reinterpret_cast<const float*>(row(x.scales, by_token ? batch : sequence, head, first));
  groups = x.quant.groups;
  if (x.quant.sorted)
    ranks = reinterpret_cast<const std::uint8_t*>(
        row(x.ranks, batch, head, x.starts.empty() ? 0 : x.starts[static_cast<std::size_t>(sequence)]));
  if (x.quant.scaling != Scaling::tile) return;
  channels = reinterpret_cast<const float*>(row(x.channels, sequence, head, 0));
  residual_of = x.residual_of.data() + (batch * x.scales.shape[1] + head) * x.scales.shape[2] + first;
  residual_size = std::int64_t{tile_tokens} * x.values.shape[3];
  residuals = static_cast<const std::int8_t*>(x.residuals.data);
}

namespace {

Indexed operand(const Problem& p, const Operand& o, Role role, const Quantized* keys) {
  if (o.quantized()) return Indexed(*o.quantized());
  const auto starts = role == Role::query ? p.options.query_starts : p.options.key_starts;
  return Indexed(
      quantize_with(best_backend(), o.tensor(), role, p.options.recipe, {.starts = starts, .keys = keys, .threads = p.options.threads}));
}

}  // namespace

Operands::Operands(const Problem& p) : key(operand(p, p.key, Role::key, nullptr)), value(operand(p, p.value, Role::value, nullptr)) {
  // The correction costs a product with each query: only where it is asked for.
  query = operand(p, p.query, Role::query, p.output.lse.data ? &key : nullptr);
}

}  // namespace cpu
}  // namespace chitu
