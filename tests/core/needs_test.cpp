// SPDX-License-Identifier: Apache-2.0
// Nothing is dropped silently: what a call asks for, and that a row which does not list it refuses it by name.
#include <gtest/gtest.h>

#include <functional>

#include "dispatch.h"
#include "support.h"

namespace chitu::test {
namespace {

// Tensors without data, for a call that is only planned.
struct Plan {
  Tensor query{}, key{}, value{}, out{}, lse{};
  Quantized quantized_query{}, quantized_key{}, quantized_value{};
  bool query_came_quantized = false, key_came_quantized = false, value_came_quantized = false;
  Options options{};

  explicit Plan(Device device) {
    for (Tensor* t : {&query, &key, &value, &out}) {
      *t = dense(nullptr, DType::f16, {1, 4, 6, 64});
      t->device = device;
    }
  }
  Problem problem() const {
    const Operand q = query_came_quantized ? Operand(quantized_query) : query, k = key_came_quantized ? Operand(quantized_key) : key,
                  v = value_came_quantized ? Operand(quantized_value) : value;
    return describe(q, k, v, {out, lse}, options, Data::unread);
  }
};

const Needs of_the_recipe{Need::sorted_keys};  // of the default

Device device_for(Need need) {
  return need == Need::stream || need == Need::workspace || need == Need::lengths_on_device ? Device::cuda : Device::cpu;
}

const std::vector<std::int64_t> starts{0, 2, 6};
const std::vector<std::int32_t> device_starts{0, 2, 6};  // never read
const std::vector<std::int64_t> lengths{5};              // of the one batch entry
const std::vector<Positions> positions{{3, 2}};          // of the one batch entry
alignas(256) std::byte memory[256];

struct Asked {
  Need need;
  std::function<void(Plan&)> ask;
  std::vector<Need> implied{};  // needs that come with it
};

Quantized quantized(Role role) {
  Array x(DType::f16, {1, 4, 6, 64});
  x.fill([](auto...) { return 1.f; });
  return quantize(x, role, recipes::chitu);
}

const std::vector<Asked>& all_asked() {
  static const std::vector<Asked> all{
      {Need::window, [](Plan& p) { p.options.window = causal; }},
      {Need::window,
       [](Plan& p) {
         p.options.window = {3, unbounded};
       }},
      {Need::scale, [](Plan& p) { p.options.scale = 0.5f; }},
      {Need::negative_scale, [](Plan& p) { p.options.scale = -0.5f; }, {Need::scale}},
      {Need::query_positions, [](Plan& p) { p.options.query_positions = Positions{}; }},
      {Need::key_positions, [](Plan& p) { p.options.key_positions = Positions{}; }},
      {Need::positions_of_sequences, [](Plan& p) { p.options.query_positions_of = positions; }},
      {Need::positions_of_sequences, [](Plan& p) { p.options.key_positions_of = positions; }},
      {Need::packed_sequences, [](Plan& p) { p.options.query_starts = p.options.key_starts = starts; }},
      {Need::key_lengths, [](Plan& p) { p.options.key_lengths = lengths; }},
      {Need::lengths_on_device,
       [](Plan& p) {
         p.options.device_key_lengths = {device_starts.data(), 1};
       }},
      {Need::lengths_on_device,
       [](Plan& p) {
         p.options.device_query_starts = p.options.device_key_starts = device_starts;
         p.options.max_queries = p.options.max_keys = 6;
       }},
      {Need::threads, [](Plan& p) { p.options.threads = 2; }},
      {Need::stream, [](Plan& p) { p.options.stream = &p; }},
      {Need::workspace, [](Plan& p) { p.options.workspace = memory; }},
      {Need::lse,
       [](Plan& p) {
         p.lse = dense(nullptr, DType::f32, {1, 4, 6, 1});
       }},
      {Need::grouped_heads, [](Plan& p) { p.key.shape[1] = p.value.shape[1] = 2; }},
      {Need::mixed_types, [](Plan& p) { p.query.type = DType::bf16; }},
      {Need::mixed_types, [](Plan& p) { p.value.type = DType::f32; }},
      {Need::mixed_types, [](Plan& p) { p.out.type = DType::f32; }},
      {Need::quantized_query,
       [](Plan& p) {
         p.quantized_query = quantized(Role::query);
         p.query_came_quantized = true;
       }},
      {Need::quantized_key,
       [](Plan& p) {
         p.quantized_key = quantized(Role::key);
         p.key_came_quantized = true;
       }},
      {Need::quantized_value,
       [](Plan& p) {
         p.quantized_value = quantized(Role::value);
         p.value_came_quantized = true;
       }},
  };
  return all;
}

std::vector<Need> all_needs() {
  std::vector<Need> all;
  for (int i = 0; i < need_count; ++i) all.push_back(Need{static_cast<std::uint8_t>(i)});
  return all;
}

TEST(Needs, TheDefaultCallAsksForItsRecipeAndNothingElse) {
  for (const Device device : {Device::cpu, Device::cuda}) {
    EXPECT_EQ(Plan(device).problem().needs, of_the_recipe);
    Plan exact(device);
    exact.options.recipe = recipes::exact;
    EXPECT_TRUE(exact.problem().needs.empty());
  }
  Plan unbounded_window(Device::cpu);
  unbounded_window.options.window = {unbounded + 1, unbounded + 2};
  EXPECT_EQ(unbounded_window.problem().needs, of_the_recipe);
}

TEST(Needs, WhatIsNotTheDefaultIsAskedFor) {
  Needs seen{Need::unlisted, Need::sorted_keys};
  for (const Asked& asked : all_asked()) {
    SCOPED_TRACE(name(asked.need));
    Plan plan(device_for(asked.need));
    asked.ask(plan);
    Needs expected = of_the_recipe;
    expected.add(asked.need);
    for (const Need need : asked.implied) expected.add(need);
    EXPECT_EQ(plan.problem().needs, expected);
    seen.add(asked.need);
  }
  for (const Need need : all_needs()) EXPECT_TRUE(seen.has(need)) << "no case here asks for " << name(need);
}

// An option that no row has heard of is refused by all rows, whatever the device, on all three ways to a kernel.
TEST(Needs, AnOptionThatNoRowListsIsRefusedByEachRowByName) {
  const std::string wanted = std::string("does not take ") + name(Need::unlisted);
  for (const Device device : {Device::cpu, Device::cuda})
    for (const Method& method : methods) {
      Plan plan(device);
      plan.options.recipe = method.recipe;
      Problem problem = plan.problem();
      problem.needs.add(Need::unlisted);
      std::size_t rows = 0;
      for (const Kernel& row : kernel_table()) {
        if (row.device != device) continue;
        EXPECT_EQ(refusal(row, problem), wanted) << row.name;
        ++rows;
      }
      const auto count = [&](const std::string& text) {
        std::size_t found = 0;
        for (std::size_t at = text.find(wanted); at != std::string::npos; at = text.find(wanted, at + 1)) ++found;
        return found;
      };
      EXPECT_EQ(count(explain(problem)), rows) << explain(problem);
      try {
        select(problem);
        FAIL() << "some row takes what none lists";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::unsupported);
        EXPECT_EQ(count(error.what()), rows) << error.what();
      }
    }
}

// The same for each option that there is, once a row does not list it.
TEST(Needs, WhatARowDoesNotListItRefusesByName) {
  for (const Kernel& row : kernel_table())
    for (const Need need : all_needs()) {
      Problem problem = Plan(row.device).problem();
      problem.needs = {need};
      Kernel without = row;
      without.takes = row.takes.without({need});
      EXPECT_EQ(refusal(without, problem), std::string("does not take ") + name(need)) << row.name;
    }
}

TEST(Needs, AllThatIsMissingIsNamed) {
  const Kernel& row = kernel_table().back();
  Plan plan(row.device);
  plan.options.window = causal;
  plan.options.scale = 2.f;
  Kernel without = row;
  without.takes = {Need::window, Need::sorted_keys};
  EXPECT_EQ(refusal(without, plan.problem()), "does not take scale");
  without.takes = {};
  EXPECT_EQ(refusal(without, plan.problem()), "does not take window, scale, keys sorted by size");
}

// CPU kernels take every call in CPU memory.
TEST(Needs, TheCpuTakesAllThatACallCanAskFor) {
  for (const Asked& asked : all_asked()) {
    if (device_for(asked.need) != Device::cpu) continue;
    Plan plan(Device::cpu);
    asked.ask(plan);
    EXPECT_NO_THROW(select(plan.problem())) << name(asked.need);
  }
}

}  // namespace
}  // namespace chitu::test
