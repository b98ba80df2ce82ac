// SPDX-License-Identifier: Apache-2.0
// The GPU's calls on streams: the same bits every run, beside each other, in a caller's workspace, replayed as a graph.
#include <algorithm>
#include <string>

#include "support.h"

namespace chitu::test {
namespace {

// Tensors of a call, packed or not, and its workspace.
struct Tensors {
  GpuArray query, key, value, out, lse;
  Options options;
  std::shared_ptr<void> workspace{};

  Tensors(Random& random, const Recipe& recipe, DType type, std::int64_t batch, std::int64_t tokens, std::int64_t dim)
      : query(normal(random, type, {batch, 4, tokens, dim})),
        key(normal(random, type, {batch, 2, tokens, dim}), Layout::bshd),
        value(normal(random, type, {batch, 2, tokens, dim})),
        out(type, query.tensor().shape, Layout::bhsd),
        lse(DType::f32, {batch, 4, tokens, 1}, Layout::bhsd),
        options{.recipe = recipe, .window = causal} {}

  void give_workspace() {
    options.workspace_bytes = workspace_size(query.tensor(), key.tensor(), value.tensor(), {out, lse}, options);
    void* memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, options.workspace_bytes), cudaSuccess);
    workspace = std::shared_ptr<void>(memory, cudaFree);
    ASSERT_EQ(cudaMemset(memory, 0xff, options.workspace_bytes), cudaSuccess);  // a call may not rely on what it holds
    options.workspace = memory;
  }
  void assign(Random& random) {
    for (GpuArray* x : {&query, &key, &value}) x->assign(normal(random, x->tensor().type, x->tensor().shape));
  }
  void call() const { attention(query.tensor(), key.tensor(), value.tensor(), {out, lse}, options); }
  GpuResult direct() const {  // the same call without workspace or stream
    Options plain = options;
    plain.workspace = plain.stream = nullptr;
    plain.workspace_bytes = 0;
    return attend_on_gpu(query.tensor(), key.tensor(), value.tensor(), plain, out.tensor().type);
  }
  void expect(const GpuResult& expected) const {
    EXPECT_EQ(out.numbers(), expected.out);
    EXPECT_EQ(lse.numbers(), expected.lse);
  }
};

const std::int64_t starts[] = {0, 70, 70, 400, 1100};

class GpuStreams : public NeedsGpu<testing::TestWithParam<Method>> {};

TEST_P(GpuStreams, SameBitsEveryRunBesideEachOther) {
  for (const std::int64_t dim : {64, 128}) {
    Random random(5);
    const Stream streams[2];
    std::vector<Tensors> calls;
    std::vector<GpuResult> alone;
    for (int i = 0; i < 2; ++i) calls.emplace_back(random, GetParam().recipe, DType::bf16, 2, 1100, dim);
    for (std::size_t i = 0; i < 2; ++i) {
      alone.push_back(calls[i].direct());
      calls[i].options.stream = streams[i];
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (int run = 0; run < 10; ++run) {
      for (int repeat = 0; repeat < 3; ++repeat)
        for (const Tensors& c : calls) c.call();
      for (std::size_t i = 0; i < 2; ++i) calls[i].expect(alone[i]);
    }
  }
}

TEST_P(GpuStreams, WorkspaceOfTheCallersGivesTheSameBits) {
  for (const std::int64_t dim : {64, 72, 256})
    for (const bool packed : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (packed ? ", packed" : ""));
      Random random(15);
      Tensors c(random, GetParam().recipe, DType::f16, packed ? 1 : 2, 1100, dim);
      if (packed) c.options.query_starts = c.options.key_starts = starts;
      c.give_workspace();
      c.call();
      c.expect(c.direct());
    }
}

// The first kernel may start before earlier work has ended, so it must wait itself.
TEST_P(GpuStreams, WaitsForWhatComesBefore) {
  for (const std::int64_t dim : {64, 128})
    for (const bool captured : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (captured ? ", captured" : ""));
      Random random(17);
      const Stream stream;
      Tensors c(random, GetParam().recipe, DType::bf16, 4, 2500, dim), next(random, GetParam().recipe, DType::bf16, 4, 2500, dim);
      const GpuResult expected = next.direct();
      c.options.stream = stream;
      c.give_workspace();
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      if (captured) {
        ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
      }
      c.call();  // of the old data, in the same workspace
      for (GpuArray Tensors::*const x : {&Tensors::query, &Tensors::key, &Tensors::value}) {
        const Tensor to = (c.*x).tensor(), from = (next.*x).tensor();
        const auto bytes = static_cast<std::size_t>(to.shape[0] * to.shape[1] * to.shape[2] * to.shape[3] * 2);
        ASSERT_EQ(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
      }
      c.call();
      if (captured) {
        cudaGraph_t graph{};
        cudaGraphExec_t run{};
        ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
        ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
        ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        EXPECT_EQ(cudaGraphExecDestroy(run), cudaSuccess);
        EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
      }
      c.expect(expected);
    }
}

TEST_P(GpuStreams, GraphsReplayWithNewData) {
  for (const std::int64_t dim : {64, 72, 128, 256})
    for (const bool packed : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (packed ? ", packed" : ""));
      Random random(16);
      const Stream stream;
      Tensors c(random, GetParam().recipe, DType::bf16, packed ? 1 : 2, 1100, dim);
      c.options.stream = stream;
      std::vector<std::int64_t> copy(std::begin(starts), std::end(starts));
      if (packed) c.options.query_starts = c.options.key_starts = copy;
      c.give_workspace();
      cudaGraph_t graph{};
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
      ASSERT_NO_THROW(c.call());
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
      std::fill(copy.begin(), copy.end(), 0);  // a graph must not need the caller's host memory
      c.options.query_starts = c.options.key_starts = {};

      std::size_t count = 0;
      ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &count), cudaSuccess);
      std::vector<cudaGraphNode_t> nodes(count);
      ASSERT_EQ(cudaGraphGetNodes(graph, nodes.data(), &count), cudaSuccess);
      for (const cudaGraphNode_t node : nodes) {
        cudaGraphNodeType type{};
        ASSERT_EQ(cudaGraphNodeGetType(node, &type), cudaSuccess);
        EXPECT_EQ(type, cudaGraphNodeTypeKernel) << "graphs must hold kernels only: no allocation, no copy from the host";
      }

      cudaGraphExec_t run{};
      ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
      if (packed) c.options.query_starts = c.options.key_starts = starts;
      for (int replay = 0; replay < 3; ++replay) {
        c.assign(random);
        const GpuResult expected = c.direct();
        ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
        ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);  // at once behind the first, in the same workspace
        c.expect(expected);
      }
      EXPECT_EQ(cudaGraphExecDestroy(run), cudaSuccess);
      EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    }
}

INSTANTIATE_TEST_SUITE_P(All, GpuStreams, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

// The text of attention()'s error; empty if there is none.
std::string error_of(const Tensors& c) {
  try {
    c.call();
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

using Gpu = NeedsGpu<testing::Test>;

TEST_F(Gpu, WorkspacesThatDoNotDoAreRefused) {
  Random random(17);
  Tensors c(random, recipes::chitu, DType::f16, 1, 300, 64);
  c.give_workspace();
  EXPECT_EQ(error_of(c), "");
  c.options.workspace_bytes -= 1;
  EXPECT_NE(error_of(c).find("workspace has " + std::to_string(c.options.workspace_bytes) + " bytes; this call needs"), std::string::npos)
      << error_of(c);
  ++c.options.workspace_bytes;
  c.options.workspace = static_cast<std::byte*>(c.options.workspace) + 16;
  EXPECT_NE(error_of(c).find("workspace starts at no multiple of 256 bytes"), std::string::npos) << error_of(c);
  alignas(256) static std::byte host[256];
  c.options.workspace = host;
  EXPECT_NE(error_of(c).find("workspace's memory is not on GPU 0"), std::string::npos) << error_of(c);
}

TEST_F(Gpu, ErrorsThatTheCallerLeftAreNotReported) {
  for (const std::int64_t dim : {64, 72})
    for (const Recipe& recipe : {recipes::chitu, recipes::exact}) {
      Random random(19);
      const Tensors c(random, recipe, DType::f16, 1, 300, dim);
      const GpuResult expected = c.direct();
      void* memory = nullptr;
      ASSERT_EQ(cudaMalloc(&memory, std::size_t{1} << 60), cudaErrorMemoryAllocation);
      EXPECT_EQ(error_of(c), "");
      c.expect(expected);
    }
}

TEST_F(Gpu, CapturingNeedsAWorkspace) {
  Random random(18);
  const Stream stream;
  Tensors c(random, recipes::chitu, DType::f16, 1, 300, 64);
  c.options.stream = stream;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  const std::string error = error_of(c);
  cudaGraph_t graph{};
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << "the refusal spoilt the capture";
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_NE(error.find("workspace"), std::string::npos) << error;
  EXPECT_EQ(error_of(c), "");
}

}  // namespace
}  // namespace chitu::test
