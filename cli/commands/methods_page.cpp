// SPDX-License-Identifier: Apache-2.0
#include "cli/commands/methods_page.h"

#include <fmt/format.h>

#include "chitu/chitu.h"
#include "cli/measure/report.h"

namespace chitu::cli {
namespace {

std::string groups_text(const Groups& g) {
  if (g.lanes > 1) return fmt::format("{} scales for each {} tokens", g.lanes, g.block);
  return g.block == 1 ? "per token" : fmt::format("per {} tokens", g.block);
}

std::string scaling_text(const Quant& q) {
  switch (q.scaling) {
    case Scaling::none:
      return "none";
    case Scaling::tokens:
      return groups_text(q.groups) + (q.sorted ? " sorted by size" : "");
    case Scaling::head:
      return "per head";
    case Scaling::channel:
      return "per channel";
    case Scaling::tile:
      return fmt::format("channel vector, then per {} tokens", tile_tokens);
  }
  return {};
}

std::string type_text(const Quant& q) { return q.scaling == Scaling::none ? "as it came" : name(q.type); }

std::string centre_text(Centre centre) {
  return centre == Centre::none ? "no" : centre == Centre::mean ? "by the mean" : "by a sampled mean";
}

std::string stored_text(const Quant& q) { return q.scaling == Scaling::none ? type_text(q) : type_text(q) + ", " + scaling_text(q); }

std::string sum_text(Sum sum) { return sum == Sum::rounded ? "stored weights" : "unrounded weights"; }

Table origins() {
  Table table{.header = {"method", "origin", "what it is"}, .rows = {}, .text = true};
  for (const Method& m : methods) table.rows.push_back({fmt::format("`{}`", m.name), std::string(m.origin), std::string(m.summary)});
  return table;
}

Table storage() {
  Table table{.header = {"method", "queries", "query scales", "keys", "key scales", "keys centred", "rotated", "values", "value scales"},
              .rows = {},
              .text = true};
  for (const Method& m : methods) {
    const Recipe& r = m.recipe;
    table.rows.push_back({fmt::format("`{}`", m.name), type_text(r.query), scaling_text(r.query), type_text(r.key), scaling_text(r.key),
                          centre_text(r.key.centre), r.key.rotated ? "yes" : "no", type_text(r.value), scaling_text(r.value)});
  }
  return table;
}

Table weights() {
  Table table{.header = {"method", "stored as", "largest", "relative to", "output normalised by", "LSE from"}, .rows = {}, .text = true};
  for (const Method& m : methods) {
    const Weights& w = m.recipe.weights;
    table.rows.push_back({fmt::format("`{}`", m.name), w.type == DType::f32 ? "f32, not rounded" : name(w.type), fmt::format("{:g}", w.top),
                          w.by_tile ? fmt::format("the row's maximum in its tile of {} keys", tile_tokens) : "the running maximum",
                          sum_text(w.output), sum_text(w.lse)});
  }
  return table;
}

}  // namespace

std::string methods_table() {
  Table table{.header = {"method", "origin", "queries", "keys", "values", "weights"}, .rows = {}, .text = true};
  for (const Method& m : methods) {
    const Recipe& r = m.recipe;
    table.rows.push_back(
        {std::string(m.name), std::string(m.origin), stored_text(r.query), stored_text(r.key), stored_text(r.value), name(r.weights.type)});
  }
  return table.markdown();
}

std::string kernels_table(std::optional<Device> device) {
  Table table{.header = {"kernel", "query . key in", "weights . values in"}, .rows = {}, .text = true};
  for (const KernelInfo& k : kernels()) {
    if (device && k.device != *device) continue;
    table.rows.push_back({fmt::format("`{}`", k.name), std::string(k.scores), std::string(k.weights)});
  }
  return table.markdown();
}

std::string methods_page() {
  return fmt::format(
      "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
      "<!-- Generated: chitu methods --markdown > docs/methods.md. A test fails when it is stale. -->\n"
      "# Methods\n\n"
      "A method is a value, declared in `include/chitu/method.h`; `docs/numerics.md` defines each field. Choose one with `--method` on\n"
      "the command line or `Options::recipe` in C++, and see what it does to your tensors with `chitu accuracy`.\n\n{}\n"
      "## How operands are stored\n\n"
      "A scale is shared by the tokens or channels named. Keys are centred before they are rounded: softmax does not feel it, and the LSE\n"
      "is corrected. Rotation multiplies queries and keys by one orthogonal matrix, which leaves their products as they are.\n\n{}\n"
      "## How weights meet values\n\n"
      "A weight is 2^(score - maximum), times the largest stored value, rounded to the type it is stored as.\n\n{}\n"
      "## Kernels\n\n"
      "Of the CPU, on x86-64, in the order they are tried: the first that takes a call runs it, and `chitu explain` tells why those\n"
      "before it do not. `chitu methods` lists those of a build, with a GPU's if it has any.\n\n{}",
      origins().markdown(), storage().markdown(), weights().markdown(), kernels_table(Device::cpu));
}

}  // namespace chitu::cli
