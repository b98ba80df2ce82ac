// SPDX-License-Identifier: Apache-2.0
// What a score becomes between query . key and softmax: one function for the reference, SIMD code, GPU kernels, what deals with NaN and
// infinity, and the tests' second implementation. Today it changes nothing; a softcap, ALiBi or a bias is written here and nowhere else.
// What an option says of it, a cap or slopes, has no way here yet: the first such option gives the function a parameter and its callers.
#pragma once

#include <cstdint>

namespace chitu {

// Where a score stands. A change may depend on the head (ALiBi's slopes), on positions (ALiBi, a bias by distance), and on nothing else.
// Positions are those that visible() compares, not indices, so that a shard of a ring changes scores as the whole sequence would.
struct ScorePlace {
  std::int64_t head;        // of the query
  std::int64_t query, key;  // positions
  std::int64_t step;        // between the keys of a vector of scores, whose first stands at `key`
};

// score * unit is scale * query . key, and so is the result: kernels leave factors that a row or a tile shares out of their scores until
// the exponential, and a change that must know them (cap * tanh(score / cap)) gets them here instead of making every kernel multiply. In a
// call with scale 0 a kernel's unit is 0.
//
// It is called before masks and maxima, and only for scores that are numbers or come from NaN and infinity in inputs: no mask's -inf gets
// here, which a softcap would make finite, and the maximum is of what is changed, which need not rise with the score.
//
// Score is float or double, or a CPU vector of the keys at place.key, place.key + place.step, ...
//
// Keys that were centred lack query . centre, the same for a whole row. Softmax does not feel that as long as a change only adds to
// scores; a row of the kernel table that takes any other change (a softcap) adds it before. An attention sink is no change of a score:
// it is one more term of a row's sum.
template <class Score>
constexpr Score changed_score(Score score, [[maybe_unused]] Score unit, [[maybe_unused]] const ScorePlace& place) {
  return score;
}

}  // namespace chitu
