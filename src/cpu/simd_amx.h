// SPDX-License-Identifier: Apache-2.0
// AMX (Sapphire Rapids and later): AVX-512 with products on tiles, for the code in *-inl.h. A tile is 16 rows of 64 bytes.
#pragma once

#include <cstdint>

#include "cpu/simd_avx512.h"

namespace chitu::cpu {

struct Amx : Avx512 {
  static constexpr bool has_tiles = true;
  static constexpr int block_rows = 32;  // two tiles of rows
  static constexpr int tile_rows = 16, tile_bytes = 64;

  // All eight tiles at full size while it lives. At its end they are empty, as another library in this thread may expect them, and a
  // switch of threads has nothing to save.
  class Tiles {
   public:
    Tiles() {
      alignas(64) struct {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t bytes[16] = {tile_bytes, tile_bytes, tile_bytes, tile_bytes, tile_bytes, tile_bytes, tile_bytes, tile_bytes};
        std::uint8_t rows[16] = {tile_rows, tile_rows, tile_rows, tile_rows, tile_rows, tile_rows, tile_rows, tile_rows};
      } config;
      static_assert(sizeof config == 64);
      asm volatile("ldtilecfg %0" ::"m"(config));
    }
    ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
  };

  // As assembler: g++ 12's intrinsics do not say that they read memory.
  template <int tile>
  static void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  template <int tile>
  static void tile_load(const void* p, std::int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(p), "r"(stride) : "memory");
  }
  template <int tile>
  static void tile_store(void* p, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(p), "r"(stride) : "memory");
  }
  // sum += a . b, lane by lane of 4 bytes: a's rows by b's columns.
  template <int sum, int a, int b>
  static void tile_dot_s8_s8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
  }
  template <int sum, int a, int b>
  static void tile_dot_u8_s8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
  }
  template <int sum, int a, int b>
  static void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
  }
};

}  // namespace chitu::cpu
