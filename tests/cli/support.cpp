// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <sys/wait.h>

#include <cstdlib>

#include "cli/measure/gpu.h"

namespace chitu::cli::test {

bool has_gpu() { return !gpu::all().empty(); }

Outcome chitu(const std::string& words, const std::string& before) {
  // The environment names the program if the tests run on another machine than they were built on.
  static const char* const elsewhere = std::getenv("CHITU_PROGRAM");
  const std::string program = elsewhere ? elsewhere : CHITU_PROGRAM;
  const Folder folder;
  const auto out = folder / "out", error = folder / "error";
  const std::string line =
      "(" + before + " exec '" + program + "' " + words + ") >'" + out.string() + "' 2>'" + error.string() + "' </dev/null";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(out), read_bytes(error)};
}

}  // namespace chitu::cli::test
