// SPDX-License-Identifier: Apache-2.0
// Start reading here. attention() is describe -> select -> run: a checked Problem, the first row of the kernel table that takes it,
// that row's function.
#include "chitu/attention.h"

#include "dispatch.h"
#include "problem.h"

namespace chitu {
namespace {

std::size_t workspace_of(const Kernel& kernel, const Problem& problem) { return kernel.workspace ? kernel.workspace(problem) : 0; }

void check_workspace(const Kernel& kernel, const Problem& p) {
  if (!p.options.workspace) return;
  const std::size_t needed = workspace_of(kernel, p);
  require(p.options.workspace_bytes >= needed, "workspace has ", p.options.workspace_bytes, " bytes; this call needs ", needed,
          " (workspace_size())");
}

// A padded batch on the CPU, whose entries have lengths of their own: a call for each entry, with the keys that count.
void run_entries(const Kernel& kernel, const Problem& p) {
  for (const Sequence& s : p.sequences) {
    const auto entry = [&](Tensor t, std::int64_t tokens) {
      t.data = static_cast<std::byte*>(t.data) + s.batch * t.stride[0] * bytes(t.type);
      t.shape[0] = 1, t.shape[2] = tokens;
      return t;
    };
    Options o = p.options;
    o.key_lengths = {};
    o.query_positions = s.query_positions, o.key_positions = s.key_positions;
    o.query_positions_of = o.key_positions_of = {};
    const Tensor lse = given(p.output.lse) ? entry(p.output.lse, s.queries) : Tensor{};
    kernel.run(describe(entry(p.query.tensor(), s.queries), entry(p.key.tensor(), s.keys), entry(p.value.tensor(), s.keys),
                        {entry(p.output.out, s.queries), lse}, o));
  }
}

}  // namespace

void attention(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  with_own_errors([&] {
    const Problem problem = describe(query, key, value, output, options);
    const Kernel& kernel = select(problem);
    check_workspace(kernel, problem);
    if (problem.device() == Device::cpu && !options.key_lengths.empty()) return run_entries(kernel, problem);
    kernel.run(problem);
  });
}

std::size_t workspace_size(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  return with_own_errors([&] {
    const Problem problem = describe(query, key, value, output, options, Data::unread);
    return workspace_of(select(problem), problem);
  });
}

}  // namespace chitu
