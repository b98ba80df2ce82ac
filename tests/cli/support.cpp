// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <sys/wait.h>

#include <cstdlib>

namespace chitu::cli::test {

Outcome chitu(const std::string& words, const std::string& before) {
  const Folder folder;
  const auto out = folder / "out", error = folder / "error";
  const std::string line =
      "(" + before + " exec '" CHITU_PROGRAM "' " + words + ") >'" + out.string() + "' 2>'" + error.string() + "' </dev/null";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(out), read_bytes(error)};
}

}  // namespace chitu::cli::test
