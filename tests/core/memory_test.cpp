// SPDX-License-Identifier: Apache-2.0
// Lack of memory: whichever allocation fails, the library throws its own Error. This is a program of its own, because it replaces operator
// new.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <new>

#include "support.h"

namespace {

std::atomic<int> allocations_left{-1};  // the one that finds 0 fails; below 0 none does

void* allocate(std::size_t bytes) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  if (void* const data = std::malloc(bytes ? bytes : 1)) return data;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
// The standard library uses this one for buffers that it can do without. If it were not replaced, the memory of a sanitizer's version would
// meet the delete below.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes ? bytes : 1); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes ? bytes : 1); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t) noexcept { std::free(data); }

namespace chitu::test {
namespace {

// Each allocation of body() fails once, until it makes no more.
void expect_own_errors(const char* name, const std::function<void()>& body) {
  body();  // makes what is made once and kept
  int failed = 0;
  for (bool done = false; !done && failed < 100000; ++failed) {
    allocations_left = failed;
    try {
      body();
      done = allocations_left.exchange(-1) >= 0;
    } catch (const Error& error) {
      allocations_left = -1;
      EXPECT_EQ(error.code(), ErrorCode::out_of_memory) << name << ", allocation " << failed << ": " << error.what();
    } catch (const std::exception& error) {
      allocations_left = -1;
      ADD_FAILURE() << name << ", allocation " << failed << ": " << error.what();
    }
  }
  EXPECT_GT(failed, 1) << name << " allocates nothing, so this shows nothing";
}

TEST(Memory, WantOfItIsTheLibrarysError) {
  Random random(90);
  const Array q = normal(random, DType::f32, {1, 2, 20, 32}), k = normal(random, DType::f32, {1, 2, 150, 32}),
              v = normal(random, DType::f32, {1, 2, 150, 32});
  const Array out(DType::f32, q.shape()), lse(DType::f32, {1, 2, 20, 1});
  const Output output{out, lse};
  for (const std::string& kernel : available_kernels()) {
    const Options options{.threads = 1, .kernel = kernel};
    expect_own_errors(kernel.c_str(), [&] { attention(q.tensor(), k.tensor(), v.tensor(), output, options); });
  }
  expect_own_errors("quantize", [&] { quantize(v, Role::value, recipes::chitu, {.threads = 1}); });
  expect_own_errors("workspace_size", [&] { workspace_size(q.tensor(), k.tensor(), v.tensor(), output); });
  expect_own_errors("explain", [&] { explain(q.tensor(), k.tensor(), v.tensor(), output); });
  expect_own_errors("merge", [&] { merge(output, output, output); });
}

}  // namespace
}  // namespace chitu::test
