// SPDX-License-Identifier: Apache-2.0
// The progress bar writes to terminals alone, and leaves nothing behind.
#include "cli/measure/progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <memory>
#include <string>

namespace chitu::cli {
namespace {

struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<std::FILE, Close>;

TEST(Progress, IsSilentWhereThereIsNoTerminal) {
  const File file(std::tmpfile());
  ASSERT_TRUE(file);
  {
    Progress progress(2, file.get());
    progress.show("something");
    progress.advance(1);
    progress.show("something else");
  }
  EXPECT_EQ(std::fseek(file.get(), 0, SEEK_END), 0);
  EXPECT_EQ(std::ftell(file.get()), 0);
}

// What a progress of 1 of 2 writes to a terminal.
std::string on_a_terminal() {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) return {};
  const File file(std::fopen(ptsname(master), "r+"));
  if (!file) return {};
  {
    Progress progress(2, file.get());
    progress.advance(1);
    progress.show("chitu, 4096 tokens");
  }
  fcntl(master, F_SETFL, O_NONBLOCK);
  std::string text;
  char part[256];
  for (ssize_t n; (n = read(master, part, sizeof part)) > 0;) text.append(part, static_cast<std::size_t>(n));
  close(master);
  return text;
}

TEST(Progress, ShowsPartTimeLeftAndWhatGoesOn) {
  unsetenv("NO_COLOR");
  const std::string text = on_a_terminal();
  if (text.empty()) GTEST_SKIP() << "no pseudo terminals here";
  EXPECT_NE(text.find("############............"), std::string::npos) << text;
  EXPECT_NE(text.find(" 50 %"), std::string::npos);
  EXPECT_NE(text.find("0:00 left"), std::string::npos);
  EXPECT_NE(text.find("chitu, 4096 tokens"), std::string::npos);
  EXPECT_NE(text.find("\033[36m"), std::string::npos);
  EXPECT_EQ(text.substr(text.size() - 4), "\r\033[K");  // cleared at the end
}

TEST(Progress, HonoursNoColor) {
  setenv("NO_COLOR", "1", 1);
  const std::string text = on_a_terminal();
  unsetenv("NO_COLOR");
  if (text.empty()) GTEST_SKIP() << "no pseudo terminals here";
  EXPECT_NE(text.find(" 50 %"), std::string::npos);
  EXPECT_EQ(text.find("\033[3"), std::string::npos);
  EXPECT_EQ(text.find("\033[0m"), std::string::npos);
}

}  // namespace
}  // namespace chitu::cli
