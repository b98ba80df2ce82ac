// SPDX-License-Identifier: Apache-2.0
// What the files of the C interface share.
#pragma once

#include <new>
#include <vector>

#include "chitu/attention.h"
#include "chitu/c.h"

struct chitu_quantized {
  explicit chitu_quantized(chitu::Quantized quantized);
  chitu::Quantized value;
  std::vector<chitu_tensor> parts;         // views of its parts, by CHITU_VALUES ...
  std::vector<chitu_nonfinite> nonfinite;  // views of its tokens that are not finite
};

namespace chitu::c_api {

chitu_status fail(chitu_status status, const char* what);  // keeps the message for chitu_last_error()

template <class Body>
chitu_status guarded(const Body& body) noexcept {
  try {
    body();
    return CHITU_OK;
  } catch (const chitu::Error& error) {
    return fail(static_cast<chitu_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(CHITU_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(CHITU_INTERNAL, error.what());
  } catch (...) {
    return fail(CHITU_INTERNAL, "unknown exception");
  }
}

}  // namespace chitu::c_api
