// SPDX-License-Identifier: Apache-2.0
// The one parallel loop: OpenMP, so that the pool is shared with a host program that uses it too.
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>
#include <type_traits>

namespace chitu {

inline int thread_count(int asked) { return asked > 0 ? asked : omp_get_max_threads(); }

// body(i) or body(i, thread) for i = 0 ... count - 1, each on one of `threads` threads, handed out in order. The first exception is
// thrown after the loop.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  const auto call = [&](std::int64_t i, int thread) {
    if constexpr (std::is_invocable_v<Body, std::int64_t, int>)
      body(i, thread);
    else
      body(i);
  };
  if (threads == 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) call(i, 0);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      call(i, omp_get_thread_num());
    } catch (...) {
#pragma omp critical(chitu_parallel_for)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace chitu
