// SPDX-License-Identifier: Apache-2.0
// Results do not depend on how the calling program has set its processor's arithmetic: another rounding direction (interval arithmetic),
// denormals as zeros (torch.set_flush_denormal(), audio programs), traps.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace chitu {

// As long as it lives its thread rounds to nearest, keeps denormals and traps nothing, as C++ programs start. A thread takes such settings
// over from the one that started it, so each thread of a pool needs one of its own.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
#if defined(__SSE__)
  DefaultFloatEnvironment() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  DefaultFloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

}  // namespace chitu
