// SPDX-License-Identifier: Apache-2.0
// A bar with the time left, on a terminal only: a file or a pipe gets nothing. NO_COLOR turns its colour off.
#pragma once

#include <chrono>
#include <cstdio>
#include <string_view>

namespace chitu::cli {

class Progress {
 public:
  // total: all of the work, in any unit.
  explicit Progress(double total, std::FILE* stream = stderr);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;

  void show(std::string_view doing);  // what comes next
  void advance(double work) { done_ += work; }
  void clear();  // before something else is printed

 private:
  using Clock = std::chrono::steady_clock;
  double total_, done_ = 0;
  std::FILE* stream_;
  bool terminal_, colour_, shown_ = false;
  Clock::time_point start_ = Clock::now();
};

}  // namespace chitu::cli
