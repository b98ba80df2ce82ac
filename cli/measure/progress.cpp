// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace chitu::cli {
namespace {

constexpr int width = 24;

std::string bar(double part) {
  const int full = static_cast<int>(part * width);
  return std::string(static_cast<std::size_t>(full), '#') + std::string(static_cast<std::size_t>(width - full), '.');
}

std::string clock(double seconds) {
  const auto s = static_cast<long>(seconds + .5);
  return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60) : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

Progress::Progress(double total, std::FILE* stream) : total_(total), stream_(stream), terminal_(isatty(fileno(stream)) == 1) {
  const char* no_colour = std::getenv("NO_COLOR");  // set and not empty: no-color.org
  colour_ = !no_colour || !*no_colour;
}

void Progress::show(std::string_view doing) {
  if (!terminal_) return;
  const double part = total_ > 0 ? std::clamp(done_ / total_, 0., 1.) : 1;
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  const std::string left = part > 0 ? clock(elapsed * (1 - part) / part) + " left" : "";
  clear();
  fmt::print(stream_, "{}{}{} {:3.0f} %  {:>13}  {}", colour_ ? "\033[36m" : "", bar(part), colour_ ? "\033[0m" : "", 100 * part, left,
             doing);
  std::fflush(stream_);
  shown_ = true;
}

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stream_, "\r\033[K");
  std::fflush(stream_);
  shown_ = false;
}

}  // namespace chitu::cli
