// SPDX-License-Identifier: Apache-2.0
// When calls start threads: not for little work, and not in the child of a process that has some, as the workers of a data loader are.
// Each test is for a process of its own: what happens depends on whether the process has started threads before.
#include <gtest/gtest.h>
#include <omp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <iterator>
#include <thread>

#include "support.h"

namespace chitu::test {
namespace {

constexpr unsigned patience = 60;  // seconds until a child that hangs is killed

// body() in a child of this process.
void expect_true_in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(patience);
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_FALSE(WIFSIGNALED(status)) << "signal " << WTERMSIG(status) << (WTERMSIG(status) == SIGALRM ? ": the child hung" : "");
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// attention(), quantize() and merge(), on several threads where there may be some.
struct Calls {
  Array query, key, value;

  explicit Calls(std::int64_t tokens = 300) {
    Random random(210);
    for (Array* x : {&query, &key, &value}) *x = normal(random, DType::f32, {1, 4, tokens, 64});
  }
  std::vector<std::byte> bytes() const {
    Result r = attend(query.tensor(), key.tensor(), value.tensor(), {.threads = 3});
    const Output output{r.out, r.lse};
    merge(output, output, output);
    std::vector<std::byte> all = r.out.raw();
    const Quantized keys = quantize(key, Role::key, recipes::chitu, {.threads = 3});
    const auto* integers = static_cast<const std::byte*>(keys.values.data);
    all.insert(all.end(), integers, integers + key.count());
    return all;
  }
};

std::ptrdiff_t threads_of_this_process() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
}

TEST(Threads, AreNotStartedForLittleWork) {
  const auto call = [](std::int64_t tokens) {
    const Calls calls(tokens);
    Result r = attend(calls.query.tensor(), calls.key.tensor(), calls.value.tensor());
    const Output output{r.out, r.lse};
    merge(output, output, output);
    quantize(calls.key, Role::key, recipes::chitu);
  };
  expect_true_in_child([&] {
    call(50);
    const bool alone = threads_of_this_process() == 1;
    call(1000);
    return alone && threads_of_this_process() == omp_get_max_threads();
  });
}

TEST(Fork, BeforeTheFirstCallLeavesTheChildItsThreads) {
  const Calls calls;
  expect_true_in_child([&] {
    calls.bytes();
    return threads_of_this_process() == 3;
  });
}

TEST(Fork, AfterACallLeavesTheChildOneThreadAndTheSameBits) {
  const Calls calls;
  const auto expected = calls.bytes();
  const auto alike = [&] { return calls.bytes() == expected && threads_of_this_process() == 1; };
  expect_true_in_child(alike);
  expect_true_in_child([&] {  // and its own child
    expect_true_in_child(alike);
    return alike() && !testing::Test::HasFailure();
  });
  EXPECT_EQ(calls.bytes(), expected);  // the parent goes on
}

// The child must not wait for a lock that a thread of its parent held. Workspace comes from the pool of large blocks.
TEST(Fork, WhileAnotherThreadCalls) {
  const Calls calls(2500);
  const auto expected = calls.bytes();
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done) calls.bytes();
  });
  for (int i = 0; i < 20 && !HasFailure(); ++i) expect_true_in_child([&] { return calls.bytes() == expected; });
  done = true;
  other.join();
}

#ifdef __x86_64__
// Tiles that stay in use in a host program's thread would cost it time at each switch, and another library their configuration.
TEST(Threads, AreLeftWithoutTiles) {
  const auto available = available_kernels();
  if (std::find(available.begin(), available.end(), "cpu.amx") == available.end()) GTEST_SKIP() << "this machine lacks AMX";
  const Calls calls;
  for (const Method& method : methods)
    attend(calls.query.tensor(), calls.key.tensor(), calls.value.tensor(), {.recipe = method.recipe, .threads = 3, .kernel = "cpu.amx"});
  alignas(64) unsigned char config[64] = {1};
  asm volatile("sttilecfg %0" : "=m"(config));
  EXPECT_EQ(config[0], 0);  // this thread took part
}
#endif

}  // namespace
}  // namespace chitu::test
