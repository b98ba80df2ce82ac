// SPDX-License-Identifier: Apache-2.0
// Packed sequences whose starts lie in GPU memory: the same as with starts on the host, whatever they hold when the call runs.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "cuda/schedule.h"
#include "problem.h"
#include "support.h"

namespace chitu::test {
namespace {

using Starts = std::vector<std::int64_t>;

// int32 in GPU memory.
class GpuStarts {
 public:
  explicit GpuStarts(const Starts& starts) : count_(starts.size()) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count_ * sizeof(std::int32_t)), cudaSuccess);
    memory_ = std::shared_ptr<void>(memory, cudaFree);
    assign(starts);
  }
  void assign(const Starts& starts) const {
    const std::vector<std::int32_t> narrow(starts.begin(), starts.end());
    EXPECT_EQ(narrow.size(), count_);
    EXPECT_EQ(cudaMemcpy(memory_.get(), narrow.data(), count_ * sizeof(std::int32_t), cudaMemcpyHostToDevice), cudaSuccess);
  }
  operator std::span<const std::int32_t>() const { return {static_cast<const std::int32_t*>(memory_.get()), count_}; }

 private:
  std::size_t count_;
  std::shared_ptr<void> memory_;
};

// What wrong starts count as: none falls, none is outside.
Starts clamped(Starts starts, std::int64_t tokens) {
  std::int64_t largest = 0;
  for (std::int64_t& start : starts) start = largest = std::max(largest, std::clamp<std::int64_t>(start, 0, tokens));
  return starts;
}

// Tokens behind those of the tensors are NaN, and so are outputs before a call.
struct Tensors {
  static constexpr std::int64_t more = 200;
  std::int64_t queries, keys;
  GpuArray query, key, value, out, lse;

  Tensors(Random& random, DType type, std::int64_t queries, std::int64_t keys, std::int64_t dim)
      : queries(queries),
        keys(keys),
        query(DType::bf16, {1, 4, queries + more, dim}, Layout::bhsd),
        key(DType::bf16, {1, 2, keys + more, dim}, Layout::bshd),
        value(DType::bf16, {1, 2, keys + more, dim}, Layout::bhsd),
        out(type, {1, 4, queries + more, dim}, Layout::bhsd),
        lse(DType::f32, {1, 4, queries + more, 1}, Layout::bhsd) {
    assign(random);
  }
  void assign(Random& random) {
    for (const auto& [x, tokens] : {std::pair{&query, queries}, {&key, keys}, {&value, keys}}) {
      const Shape shape = x->tensor().shape;
      Array numbers(DType::bf16, shape);
      const std::int64_t last = tokens;
      x->assign(numbers.fill([&](auto, auto, std::int64_t t, auto) { return t < last ? random.normal() : std::nanf(""); }));
    }
  }
  GpuResult call(const Options& options) const {
    attention(tokens_of(query, 0, queries), tokens_of(key, 0, keys), tokens_of(value, 0, keys),
              {tokens_of(out, 0, queries), tokens_of(lse, 0, queries)}, options);
    return {out.numbers(), lse.numbers()};
  }
  // The same call into memory of its own, with starts on the host. No sequence is longer than the bounds.
  GpuResult expected(Options options, const Starts& query_starts, const Starts& key_starts) const {
    options.device_query_starts = options.device_key_starts = {};
    options.max_queries = options.max_keys = 0;
    options.workspace = options.stream = nullptr;
    options.workspace_bytes = 0;
    Starts q = query_starts, k = key_starts;
    q.insert(q.begin(), 0), k.insert(k.begin(), 0);  // tokens in no sequence are sequences without keys here
    q.push_back(queries), k.push_back(keys);
    options.query_starts = q, options.key_starts = k;
    const GpuArray own_out(out.tensor().type, out.tensor().shape, Layout::bhsd), own_lse(DType::f32, lse.tensor().shape, Layout::bhsd);
    attention(tokens_of(query, 0, queries), tokens_of(key, 0, keys), tokens_of(value, 0, keys),
              {tokens_of(own_out, 0, queries), tokens_of(own_lse, 0, queries)}, options);
    return {own_out.numbers(), own_lse.numbers()};
  }
  // Rows of sequences are as expected, but for the order in which split items are added up; all others are as they were.
  void expect(const GpuResult& got, const GpuResult& want, const Starts& starts) const {
    const std::int64_t tokens = queries + more, dim = out.tensor().shape[3];
    std::vector<float> x, y, lse_x, lse_y;
    for (std::int64_t row = 0; row < 4 * tokens; ++row) {
      const std::int64_t t = row % tokens;
      const auto at = static_cast<std::size_t>(row);
      const bool is_in = t >= starts.front() && t < starts.back();
      if (!is_in) {
        ASSERT_TRUE(std::isnan(got.lse[at])) << "row " << row << " of no sequence was written";
        continue;
      }
      lse_x.push_back(got.lse[at]), lse_y.push_back(want.lse[at]);
      for (std::int64_t c = 0; c < dim; ++c) {
        const auto i = static_cast<std::size_t>(row * dim + c);
        x.push_back(got.out[i]), y.push_back(want.out[i]);
      }
    }
    EXPECT_LE(relative_l1(x, y), 5e-3);
    EXPECT_LE(difference(lse_x, to_double(lse_y)).largest, 1e-3);
  }
};

Options options_of(const Recipe& recipe, const GpuStarts& query, const GpuStarts& key, std::int64_t max_queries, std::int64_t max_keys) {
  return {.recipe = recipe,
          .window = causal,
          .device_query_starts = query,
          .device_key_starts = key,
          .max_queries = max_queries,
          .max_keys = max_keys,
          .kernel = gpu_kernel()};
}

class GpuLengths : public NeedsGpu<testing::TestWithParam<Method>> {};

TEST_P(GpuLengths, AreThoseOfTheHost) {
  const std::pair<Starts, Starts> cases[] = {{{0, 70, 70, 400, 1100}, {0, 100, 300, 300, 1500}},
                                             {{0, 1100}, {0, 1500}},
                                             {{0, 1, 2, 3}, {0, 129, 257, 1500}},
                                             {{50, 300, 1000}, {0, 700, 1400}},   // not all tokens are in a sequence
                                             {{0, 0, 0, 0}, {0, 500, 700, 700}},  // no queries at all
                                             {{0, 500, 1100}, {0, 0, 0}}};        // no keys
  for (const std::int64_t dim : {64, 72, 128, 256})
    for (const auto& [query_starts, key_starts] : cases) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", " + std::to_string(query_starts.size() - 1) + " sequences");
      Random random(41);
      const Tensors t(random, DType::bf16, 1100, 1500, dim);
      const GpuStarts q(query_starts), k(key_starts);
      const Options o = options_of(GetParam().recipe, q, k, 1100, 1500);
      t.expect(t.call(o), t.expected(o, query_starts, key_starts), query_starts);
    }
}

TEST_P(GpuLengths, WrongStartsAreClamped) {
  const std::pair<Starts, Starts> cases[] = {{{0, 400, 300, 900}, {0, 1500, 0, 1500}},
                                             {{-5, 100, 2000000000, 5}, {-2000000000, 700, 1600, 1700}},
                                             {{900, 900, 0, 1101}, {1500, 1400, 1300, 1200}},
                                             {{0, 1100, 0, 1100}, {0, 1500, 0, 1500}}};
  for (const std::int64_t dim : {72, 128})
    for (const auto& [query_starts, key_starts] : cases) {
      Random random(42);
      const Tensors t(random, DType::f16, 1100, 1500, dim);
      const GpuStarts q(query_starts), k(key_starts);
      const Options o = options_of(GetParam().recipe, q, k, 1100, 1500);
      const Starts right = clamped(query_starts, 1100);
      t.expect(t.call(o), t.expected(o, right, clamped(key_starts, 1500)), right);
    }
}

// Captured once, replayed with other starts in the same memory.
TEST_P(GpuLengths, GraphsReplayWithOtherLengths) {
  for (const std::int64_t dim : {64, 128}) {
    Random random(43);
    const Stream stream;
    Tensors t(random, DType::bf16, 1100, 1500, dim);
    const GpuStarts q({0, 1, 2, 3}), k({0, 1, 2, 3});
    Options o = options_of(GetParam().recipe, q, k, 1100, 1500);
    o.stream = stream;
    const Tensor query = tokens_of(t.query, 0, 1100), key = tokens_of(t.key, 0, 1500), value = tokens_of(t.value, 0, 1500);
    const Output output{tokens_of(t.out, 0, 1100), tokens_of(t.lse, 0, 1100)};
    o.workspace_bytes = workspace_size(query, key, value, output, o);
    ASSERT_EQ(cudaMalloc(&o.workspace, o.workspace_bytes), cudaSuccess);
    const std::shared_ptr<void> workspace(o.workspace, cudaFree);
    ASSERT_EQ(cudaMemset(o.workspace, 0xff, o.workspace_bytes), cudaSuccess);
    cudaGraph_t graph{};
    cudaGraphExec_t run{};
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    attention(query, key, value, output, o);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
    const std::pair<Starts, Starts> cases[] = {
        {{0, 500, 700, 1100}, {0, 100, 1500, 1500}}, {{0, 3, 3, 900}, {0, 0, 700, 1000}}, {{0, 1100, 1100, 1100}, {0, 1500, 1500, 1500}}};
    for (const auto& [query_starts, key_starts] : cases) {
      t.assign(random);
      q.assign(query_starts), k.assign(key_starts);
      const auto bytes = static_cast<std::size_t>(4 * (1100 + Tensors::more)) * sizeof(float);
      ASSERT_EQ(cudaMemset(t.lse.tensor().data, 0xff, bytes), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
      t.expect({t.out.numbers(), t.lse.numbers()}, t.expected(o, query_starts, key_starts), query_starts);
    }
    EXPECT_EQ(cudaGraphExecDestroy(run), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuLengths, testing::ValuesIn(methods), [](const auto& info) { return test_name(info.param.name); });

// The host's plan of a call needs no GPU.
TEST(GpuPlan, SequencesWithMostKeysAreTakenFirst) {
  const Starts queries{0, 500, 500, 900, 1000}, keys{0, 100, 400, 500, 900};
  const auto tensor = [](std::int64_t tokens) {
    Tensor t = dense(nullptr, DType::bf16, {1, 2, tokens, 64});
    t.device = Device::cuda;
    return t;
  };
  const Options o{.query_starts = queries, .key_starts = keys};
  const Problem p = describe(tensor(1000), tensor(900), tensor(900), tensor(1000), o, Data::unread);
  cuda::Form form = cuda::form_of(recipes::chitu, 64);
  form.block_queries = 128;
  const std::vector<cuda::SequenceLayout> layouts = cuda::layouts_of(p, form);
  ASSERT_EQ(layouts.size(), 5u);
  const int taken[] = {3, 1, 0, 2}, blocks[] = {0, 1, 1, 5, 9};  // 400, 300, 100 and 100 keys; 100, 0, 500 and 400 queries
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(layouts[i].taken, taken[i]);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(layouts[i].block, blocks[i]);
}

// With lengths on the GPU the plan has room for whatever they are.
TEST(GpuPlan, BoundsHoldForAllLengths) {
  Random random(51);
  const auto tensor = [](std::int64_t tokens) {
    Tensor t = dense(nullptr, DType::bf16, {1, 2, tokens, 64});
    t.device = Device::cuda;
    return t;
  };
  cuda::Form form = cuda::form_of(recipes::chitu, 64);
  form.block_queries = 192;
  for (int repeat = 0; repeat < 300; ++repeat) {
    const std::int64_t tokens = random.below(3000), count = 1 + random.below(9);
    Starts starts{0};
    for (std::int64_t i = 1; i < count; ++i) starts.push_back(random.below(tokens + 1));
    starts.push_back(tokens);
    std::sort(starts.begin(), starts.end());
    std::int64_t longest = 1;
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
    const std::vector<std::int32_t> on_gpu(starts.begin(), starts.end());  // never read
    const Options known{.query_starts = starts, .key_starts = starts},
        unknown{.device_query_starts = on_gpu, .device_key_starts = on_gpu, .max_queries = longest, .max_keys = longest};
    const auto totals = [&](const Options& o) {
      return cuda::layouts_of(describe(tensor(tokens), tensor(tokens), tensor(tokens), tensor(tokens), o, Data::unread), form).back();
    };
    const cuda::SequenceLayout want = totals(known), bound = totals(unknown);
    ASSERT_GE(bound.query_tile, want.query_tile);
    ASSERT_GE(bound.key_tile, want.key_tile);
    ASSERT_GE(bound.block, want.block);
  }
}

using Gpu = NeedsGpu<testing::Test>;
using GpuSmall = NeedsGpu<testing::Test>;

// More sequences than the CTA that reads their lengths has threads.
TEST_F(Gpu, LengthsOfManySequences) {
  Random random(44);
  for (const std::size_t count : {256u, 257u, 900u}) {
    Starts q{0}, k{0};
    for (std::size_t i = 0; i < count; ++i) q.push_back(q.back() + random.below(4)), k.push_back(k.back() + random.below(6));
    const Tensors t(random, DType::bf16, q.back() + 7, k.back() + 3, 128);
    const GpuStarts gpu_q(q), gpu_k(k);
    const Options o = options_of(recipes::chitu, gpu_q, gpu_k, 3, 5);
    t.expect(t.call(o), t.expected(o, q, k), q);
  }
}

TEST_F(Gpu, PositionsOfSequencesWithLengthsOnTheGpu) {
  Random random(45);
  const Starts q{0, 300, 600}, k{0, 700, 1500};
  const Tensors t(random, DType::bf16, 600, 1500, 128);
  const GpuStarts gpu_q(q), gpu_k(k);
  const std::vector<Positions> query_positions{{400}, {-20, 3}}, key_positions{{0}, {100, 2}};
  for (const bool queries : {true, false}) {
    Options o = options_of(recipes::exact, gpu_q, gpu_k, 600, 1500);
    o.key_positions_of = key_positions;
    if (queries) o.query_positions_of = query_positions;
    const GpuResult got = t.call(o);
    o.device_query_starts = o.device_key_starts = {};
    o.max_queries = o.max_keys = 0;
    o.query_starts = q, o.key_starts = k;
    t.expect(got, t.call(o), q);
  }
}

// A sequence's tokens beyond its bound are left out.
TEST_F(Gpu, LengthsAreBounded) {
  Random random(46);
  const Starts q{0, 300, 600}, k{0, 700, 1500};
  const Tensors t(random, DType::bf16, 600, 1500, 64);
  const GpuStarts gpu_q(q), gpu_k(k);
  const Options o = options_of(recipes::exact, gpu_q, gpu_k, 200, 500);
  const GpuResult got = t.call(o);
  for (std::size_t i = 0; i < 2; ++i) {
    const GpuResult want = attend_on_gpu(tokens_of(t.query, q[i], q[i] + 200), tokens_of(t.key, k[i], k[i] + 500),
                                         tokens_of(t.value, k[i], k[i] + 500), {.recipe = recipes::exact, .window = causal}, DType::bf16);
    for (std::size_t h = 0; h < 4; ++h)
      for (std::size_t row = 0; row < 300; ++row) {
        const float lse = got.lse[h * (600 + Tensors::more) + static_cast<std::size_t>(q[i]) + row];
        if (row < 200)
          ASSERT_NEAR(lse, want.lse[h * 200 + row], 1e-3);
        else
          ASSERT_TRUE(std::isnan(lse));
      }
  }
}

// A padded batch: lengths on the host, and on the GPU, against a call for each entry. Behind them keys and values are NaN.
TEST_P(GpuLengths, OfAPaddedBatch) {
  for (const std::int64_t dim : {64, 72, 128})
    for (const std::int64_t queries : {1, 333}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", " + std::to_string(queries) + " queries");
      Random random(49);
      const Starts lengths{700, 0, 1, 129, 1500};
      const auto batch = static_cast<std::int64_t>(lengths.size());
      const auto padded = [&] {
        Array x(DType::bf16, {batch, 2, 1500, dim});
        x.fill([&](auto b, auto, auto t, auto) { return t < lengths[static_cast<std::size_t>(b)] ? random.normal() : std::nanf(""); });
        return x;
      };
      const Array query = normal(random, DType::bf16, {batch, 4, queries, dim}), key = padded(), value = padded();
      const GpuArray q(query), k(key), v(value);
      Options o{.recipe = GetParam().recipe, .window = causal};
      Options on_host = o, on_gpu = o;
      on_host.key_lengths = lengths;
      const GpuStarts memory(lengths);
      on_gpu.device_key_lengths = memory;
      const GpuResult by_host = attend_on_gpu(q, k, v, on_host, DType::bf16), by_gpu = attend_on_gpu(q, k, v, on_gpu, DType::bf16);
      for (std::int64_t b = 0; b < batch; ++b) {
        const auto entry = [&](const Tensor& t, std::int64_t tokens) {
          Tensor e = tokens_of(t, 0, tokens);
          e.data = static_cast<std::byte*>(e.data) + b * e.stride[0] * bytes(e.type);
          e.shape[0] = 1;
          return e;
        };
        const std::int64_t keys = lengths[static_cast<std::size_t>(b)];
        const GpuResult want = attend_on_gpu(entry(q, queries), entry(k, keys), entry(v, keys), o, DType::bf16);
        for (const GpuResult* got : {&by_host, &by_gpu}) {
          const auto part = [&](const std::vector<float>& x, std::int64_t each) {
            return std::vector<float>(x.begin() + b * each, x.begin() + (b + 1) * each);
          };
          EXPECT_LE(relative_l1(part(got->out, 4 * queries * dim), want.out), 5e-3) << "entry " << b;
          EXPECT_LE(difference(part(got->lse, 4 * queries), to_double(want.lse)).largest, 1e-3) << "entry " << b;
        }
      }
    }
}

// Few queries and many keys: the GPU splits as the host would.
TEST_P(GpuLengths, AreSplitAlongTheKeys) {
  Random random(50);
  const Starts query_starts{0, 5, 100}, key_starts{0, 20000, 29000};
  const Tensors t(random, DType::bf16, 100, 29000, 128);
  const GpuStarts q(query_starts), k(key_starts);
  const Options o = options_of(GetParam().recipe, q, k, 100, 29000);
  t.expect(t.call(o), t.expected(o, query_starts, key_starts), query_starts);
}

TEST_F(GpuSmall, Lengths) {
  for (const Recipe& recipe : {recipes::chitu, recipes::sage})
    for (const std::int64_t dim : {64, 72}) {
      Random random(47);
      const Starts q{0, 30, 30, 150}, k{0, 200, 50, 260};
      const Tensors t(random, DType::bf16, 170, 300, dim);
      const GpuStarts gpu_q(q), gpu_k(k);
      const Options o = options_of(recipe, gpu_q, gpu_k, 170, 300);
      t.expect(t.call(o), t.expected(o, q, clamped(k, 300)), q);
    }
}

TEST_F(Gpu, LengthsAreCheckedByName) {
  Random random(48);
  const Tensors t(random, DType::bf16, 600, 1500, 64);
  const GpuStarts q({0, 300, 600}), k({0, 700, 1500});
  Options o = options_of(recipes::chitu, q, k, 400, 1000);
  o.check_device_lengths = true;
  EXPECT_NO_THROW(t.call(o));
  const auto expect = [&](const Starts& query, const Starts& key, const std::string& text) {
    q.assign(query), k.assign(key);
    expect_error([&] { t.call(o); }, ErrorCode::bad_argument, {text});
  };
  expect({0, 500, 400}, {0, 700, 1500}, "device_query_starts give sequence 0 500 tokens, but max_queries is 400");
  expect({0, 300, 200}, {0, 700, 1500}, "device_query_starts fall from 300 to 200 at index 2");
  expect({0, 300, 601}, {0, 700, 1500}, "device_query_starts end at 601, but there are 600 tokens");
  expect({0, 300, 600}, {-1, 700, 1500}, "device_key_starts begin at -1");
  const GpuStarts lengths({1501});
  const Options padded{.recipe = recipes::chitu, .device_key_lengths = lengths, .check_device_lengths = true};
  expect_error([&] { t.call(padded); }, ErrorCode::bad_argument, {"device_key_lengths[0] is 1501; it must be 0 ... 1500"});
}

}  // namespace
}  // namespace chitu::test
