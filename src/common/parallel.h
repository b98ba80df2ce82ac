// SPDX-License-Identifier: Apache-2.0
// The one parallel loop: OpenMP, so that the pool is shared with a host program that uses it too.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace chitu {

inline int thread_count(int asked) { return asked > 0 ? asked : omp_get_max_threads(); }

// body(i) for i = 0 ... count - 1, each on some thread, handed out in order. The first exception is thrown after the loop.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  if (threads == 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(chitu_parallel_for)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace chitu
