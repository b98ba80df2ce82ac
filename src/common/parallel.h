// SPDX-License-Identifier: Apache-2.0
// The one parallel loop: OpenMP, so that the pool is shared with a host program that uses it too.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <type_traits>

#include "common/float_environment.h"

namespace chitu {

inline int thread_count(int asked) { return asked > 0 ? asked : omp_get_max_threads(); }

// The same for a call of so much work, in multiply-adds: where the caller names no number, threads that have less than this each are not
// started. Starting and joining them takes 20 to 75 us a call, more than they save; and where another program has their core, the call
// waits until the system gives it back, up to 0.1 s. (2 vCPUs of an AMD EPYC with AVX-512: two threads begin to pay at 5 to 8 million.)
inline constexpr double work_of_a_thread = 4e6;
inline constexpr double work_of_a_number = 64;  // that is read and quantised: it takes as long as so many multiply-adds

inline int thread_count(int asked, double work) {
  return asked > 0 ? asked : static_cast<int>(std::clamp(work / work_of_a_thread, 1., static_cast<double>(omp_get_max_threads())));
}

// In the child of a fork() OpenMP's pool still counts threads that only the parent has, and would wait for them for ever. A child of a
// process that has started threads, and whatever it forks, therefore computes on one thread.
inline std::atomic<bool> threads_stayed_behind{false};

// May this process start threads? From the first call on a fork is noticed.
inline bool may_start_threads() {
  static const bool watches = pthread_atfork(nullptr, nullptr, [] { threads_stayed_behind = true; }) == 0;
  return watches && !threads_stayed_behind;
}

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
  if (threads == 1 || count <= 1 || !may_start_threads()) {
    for (std::int64_t i = 0; i < count; ++i) call(i, 0);
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    const DefaultFloatEnvironment floats;
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
