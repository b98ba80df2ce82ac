// SPDX-License-Identifier: Apache-2.0
// Constants of the recipes that are no field of one: docs/numerics.md gives the reasons.
#pragma once

namespace chitu {

// A scale's maximum never falls below this, so that neither the scale nor its reciprocal overflows.
inline constexpr float smallest_maximum = 1e-30f;

// Scaling::head in FP16: numbers that came in another type are stored as they are if their maximum lies between this and FP16's largest.
// Then FP16's smallest step, 2^-24, is below the rounding of the largest numbers, so that nothing is lost to it.
inline constexpr float least_plain_f16 = 0x1p-10f;

// Scaling::tile. A tile is flagged (gets a residual plane) when its largest |v / λ| exceeds this many times the mean |v / λ| of one
// of its keys: that key would be coarser than in FP8.
inline constexpr float flag_ratio = 16;
// λ of a channel: at most this many times its mean size, so that a spike does not coarsen the channel ...
inline constexpr float channel_ceiling = 8;
// ... and at least this part of the mean λ, so that a channel which the sample missed does not spoil a tile.
inline constexpr float channel_floor = 1.f / 16;
// The residual plane's unit is the tile's scale over this.
inline constexpr float residual_parts = 254;

}  // namespace chitu
