// SPDX-License-Identifier: Apache-2.0
// Loops of one kind of instruction on registers 4 ... 15: twelve independent chains, enough to hide its latency on any machine. They are in
// assembly, because compilers may keep a dozen accumulators in memory. Elsewhere than on x86-64, vectors of the language must do. The
// operands are not zero, because zeros would be faster.
#include "cli/measure/peaks.h"

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

#include "cli/measure/machine.h"

namespace chitu::cli {
namespace {

constexpr int chains = 12;

#ifdef __x86_64__
constexpr float half = .5f, one = 1;                                      // x = x / 2 + 1
constexpr std::int32_t bytes_of_3 = 0x03030303, words_of_3 = 0x00030003;  // sums of 3 * 3
constexpr std::int32_t halves_of_1 = 0x3f803f80;                          // bf16, sums of 1 * 1

[[gnu::target("avx512f")]] void fp32_avx512(std::int64_t steps) {
  asm volatile(
      "vbroadcastss %1, %%zmm0\n"
      "vbroadcastss %2, %%zmm1\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovaps %%zmm1, %%zmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vfmadd213ps %%zmm1, %%zmm0, %%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(half), "m"(one)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

[[gnu::target("avx512f,avx512vnni")]] void int8_avx512(std::int64_t steps) {
  asm volatile(
      "vpbroadcastd %1, %%zmm0\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovdqa32 %%zmm0, %%zmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vpdpbusd %%zmm0, %%zmm0, %%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(bytes_of_3)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

[[gnu::target("avx512f,avx512bf16")]] void bf16_avx512(std::int64_t steps) {
  asm volatile(
      "vpbroadcastd %1, %%zmm0\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovdqa32 %%zmm0, %%zmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vdpbf16ps %%zmm0, %%zmm0, %%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(halves_of_1)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

// On tiles: four sums of 16 rows by 16 columns, enough to hide the latency, of two tiles of rows and two of columns. `steps` times three.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig tile_config;
constexpr int tile_products = 12;  // a step

struct alignas(64) TileNumbers {
  std::int32_t lane[16][16];
  explicit TileNumbers(std::int32_t x) { std::fill_n(&lane[0][0], 256, x); }
};

#define CHITU_TILE_LOOP(product)                                                                                                      \
  asm volatile(                                                                                                                       \
      "ldtilecfg %1\n"                                                                                                                \
      ".irp r, 0, 1, 2, 3\n"                                                                                                          \
      "tilezero %%tmm\\r\n"                                                                                                           \
      ".endr\n"                                                                                                                       \
      ".irp r, 4, 5, 6, 7\n"                                                                                                          \
      "tileloadd (%2,%3,1), %%tmm\\r\n"                                                                                               \
      ".endr\n"                                                                                                                       \
      "1:\n"                                                                                                                          \
      ".rept 3\n" product " %%tmm6, %%tmm4, %%tmm0\n" product " %%tmm6, %%tmm5, %%tmm1\n" product " %%tmm7, %%tmm4, %%tmm2\n" product \
      " %%tmm7, %%tmm5, %%tmm3\n"                                                                                                     \
      ".endr\n"                                                                                                                       \
      "dec %0\n"                                                                                                                      \
      "jnz 1b\n"                                                                                                                      \
      "tilerelease\n"                                                                                                                 \
      : "+r"(steps)                                                                                                                   \
      : "m"(tile_config), "r"(&numbers), "r"(std::int64_t{64})                                                                        \
      : "cc", "memory")

[[gnu::target("amx-tile,amx-int8")]] void int8_amx(std::int64_t steps) {
  const TileNumbers numbers(bytes_of_3);
  CHITU_TILE_LOOP("tdpbssd");
}

[[gnu::target("amx-tile,amx-bf16")]] void bf16_amx(std::int64_t steps) {
  const TileNumbers numbers(halves_of_1);
  CHITU_TILE_LOOP("tdpbf16ps");
}

[[gnu::target("avx2,fma")]] void fp32_avx2(std::int64_t steps) {
  asm volatile(
      "vbroadcastss %1, %%ymm0\n"
      "vbroadcastss %2, %%ymm1\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovaps %%ymm1, %%ymm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vfmadd213ps %%ymm1, %%ymm0, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(half), "m"(one)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

// vpmaddubsw would be twice as fast, but it saturates, so it makes no exact dot product.
[[gnu::target("avx2")]] void int8_avx2(std::int64_t steps) {
  asm volatile(
      "vpbroadcastd %1, %%ymm0\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovdqa %%ymm0, %%ymm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vpmaddwd %%ymm0, %%ymm0, %%ymm1\n"
      "vpaddd %%ymm1, %%ymm\\r, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(words_of_3)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

[[gnu::target("avx2")]] void int8_avxvnni(std::int64_t steps) {
  asm volatile(
      "vpbroadcastd %1, %%ymm0\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "vmovdqa %%ymm0, %%ymm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(steps)
      : "m"(bytes_of_3)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

// Every x86-64 has SSE2.
void fp32_sse2(std::int64_t steps) {
  asm volatile(
      "movss %1, %%xmm0\n"
      "shufps $0, %%xmm0, %%xmm0\n"
      "movss %2, %%xmm1\n"
      "shufps $0, %%xmm1, %%xmm1\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "movaps %%xmm1, %%xmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "mulps %%xmm0, %%xmm\\r\n"
      "addps %%xmm1, %%xmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(steps)
      : "m"(half), "m"(one)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

void int8_sse2(std::int64_t steps) {
  asm volatile(
      "movd %1, %%xmm0\n"
      "pshufd $0, %%xmm0, %%xmm0\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "movdqa %%xmm0, %%xmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
      "movdqa %%xmm0, %%xmm1\n"
      "pmaddwd %%xmm0, %%xmm1\n"
      "paddd %%xmm1, %%xmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(steps)
      : "m"(words_of_3)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15");
}

bool has(std::string_view set) {
  const auto& sets = instruction_sets();
  return std::any_of(sets.begin(), sets.end(), [&](const InstructionSet& s) { return s.name == set && s.found; });
}
#else
// x = x * a + a in vectors of 16 bytes; indices are constants, so that the chains live in registers.
template <class Number, int... chain>
[[gnu::noinline]] void vector_chains(std::int64_t steps, Number a, std::integer_sequence<int, chain...>) {
  using Vector [[gnu::vector_size(16)]] = Number;
  Vector x[chains] = {(Vector{} + a * chain)...};  // all different, or the compiler would keep but one
  for (std::int64_t i = 0; i < steps; ++i) ((x[chain] = x[chain] * a + a), ...);
  volatile Vector sink = (x[chain] + ...);
  static_cast<void>(sink);
}

template <class Number>
void vector_loop(std::int64_t steps) {
  volatile Number a = Number{1} / 2;
  vector_chains<Number>(steps, a, std::make_integer_sequence<int, chains>());
}
#endif

struct Loop {
  void (*run)(std::int64_t steps);
  int lanes;  // multiply-adds of an instruction, or of the few that make one
};

struct Loops {
  const char* instructions;
  Loop fp32, int8, bf16;  // bf16: null where there is no instruction
};

Loops best_loops() {
#ifdef __x86_64__
  constexpr int tile = 16 * 16 * 16 * tile_products / chains;  // lanes of a product of tiles, for each of a step's `chains`
  if (best_kernel() == "cpu.amx") return {"amx", {fp32_avx512, 16}, {int8_amx, 4 * tile}, {bf16_amx, 2 * tile}};
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"))
    return {"avx512", {fp32_avx512, 16}, {int8_avx512, 64}, {has("avx512bf16") ? bf16_avx512 : nullptr, 32}};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has("avxvnni"))
    return {"avxvnni", {fp32_avx2, 8}, {int8_avxvnni, 32}, {}};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", {fp32_avx2, 8}, {int8_avx2, 16}, {}};
  return {"sse2", {fp32_sse2, 4}, {int8_sse2, 8}, {}};
#else
  return {"portable", {vector_loop<float>, 4}, {vector_loop<std::int32_t>, 4}, {}};
#endif
}

// Seconds from the first thread's start to the last one's end. Waking the threads is not counted.
double seconds(const Loop& loop, std::int64_t steps, int threads) {
  double start = std::numeric_limits<double>::max(), end = 0;
#pragma omp parallel num_threads(threads) reduction(min : start) reduction(max : end)
  {
#pragma omp barrier
    start = omp_get_wtime();
    loop.run(steps);
    end = omp_get_wtime();
  }
  return end - start;
}

// The least of many times, because other programs disturb it least.
double least_seconds(const Loop& loop, std::int64_t steps, int threads, int runs) {
  double least = seconds(loop, steps, threads);
  for (int i = 1; i < runs; ++i) least = std::min(least, seconds(loop, steps, threads));
  return least;
}

// Operations a second, in millions of millions, in runs of about 5 ms.
double rate(const Loop& loop, int threads) {
  std::int64_t steps = 1 << 14;
  while (least_seconds(loop, steps, threads, 4) < .005) steps *= 2;
  return 2. * loop.lanes * chains * static_cast<double>(steps) * threads / least_seconds(loop, steps, threads, 40) * 1e-12;
}

}  // namespace

Peaks measure_peaks(int threads) {
  const Loops best = best_loops();
  const auto peak = [&](const Loop& loop) { return loop.run ? rate(loop, threads) : 0; };
  return {best.instructions, peak(best.fp32), peak(best.int8), peak(best.bf16)};
}

}  // namespace chitu::cli
