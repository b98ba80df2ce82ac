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

}  // namespace

void attention(const Operand& query, const Operand& key, const Operand& value, const Output& output, const Options& options) {
  with_own_errors([&] {
    const Problem problem = describe(query, key, value, output, options);
    const Kernel& kernel = select(problem);
    check_workspace(kernel, problem);
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
