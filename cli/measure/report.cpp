// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "chitu/error.h"

namespace chitu::cli {

std::string Table::markdown() const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < header.size(); ++c) {
    std::size_t width = std::max<std::size_t>(header[c].size(), 3);
    for (const auto& row : rows) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  const auto right = [&](std::size_t c) { return c > 0 && !text; };
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string result = "|";
    for (std::size_t c = 0; c < cells.size(); ++c)
      result += right(c) ? fmt::format(" {:>{}} |", cells[c], widths[c]) : fmt::format(" {:<{}} |", cells[c], widths[c]);
    return result + "\n";
  };
  std::vector<std::string> rule;
  for (std::size_t c = 0; c < header.size(); ++c) rule.push_back(std::string(widths[c] - right(c), '-') + (right(c) ? ":" : ""));
  std::string result = line(header) + line(rule);
  for (const auto& row : rows) result += line(row);
  return result;
}

Json json_number(double x) { return std::isnan(x) ? Json() : std::isinf(x) ? Json(x > 0 ? "inf" : "-inf") : Json(x); }

std::string csv(const Json& rows) {
  const auto cell = [](const Json& x) {
    if (!x.is_string()) return x.is_null() ? std::string() : x.dump();
    std::string text = x.get<std::string>();
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    for (std::size_t i = 0; (i = text.find('"', i)) != std::string::npos; i += 2) text.insert(i, 1, '"');
    return fmt::format("\"{}\"", text);
  };
  const auto line = [](const std::vector<std::string>& cells) { return fmt::format("{}\n", fmt::join(cells, ",")); };
  std::string result;
  for (const Json& row : rows) {
    std::vector<std::string> keys, cells;
    for (const auto& item : row.items()) {
      keys.push_back(item.key());
      cells.push_back(cell(item.value()));
    }
    if (result.empty()) result = line(keys);
    result += line(cells);
  }
  return result;
}

ReportFile::ReportFile(std::string option, const std::string& path) : option_(std::move(option)) {
  if (!path.empty()) file_.emplace(path);
}

void ReportFile::require_extension(std::string_view extension) const {
  require(!wanted() || file_->path().extension() == extension, option_, " ", wanted() ? file_->path().string() : "", " must end in ",
          extension);
}

void ReportFile::write(std::string_view text) {
  file_->write(text);
  file_->publish();
}

void require_different_files(std::initializer_list<const ReportFile*> files) {
  for (auto a = files.begin(); a != files.end(); ++a)
    for (auto b = files.begin(); b != a; ++b)
      if ((*a)->wanted() && (*b)->wanted())
        require((*a)->file_->target() != (*b)->file_->target(), (*b)->option_, " and ", (*a)->option_, " are one file, ",
                (*a)->file_->path().string());
}

std::string milliseconds(double x, int most_decimals) { return fmt::format("{:.{}f}", x, x < 10 ? most_decimals : x < 1000 ? 1 : 0); }
std::string scientific(double x) { return std::isnan(x) ? "-" : fmt::format("{:.1e}", x); }
std::string relative(double x) { return std::isnan(x) ? "-" : x == 0 || x >= 1e-4 ? fmt::format("{:.4f}", x) : fmt::format("{:.0e}", x); }
std::string count(std::int64_t n, std::string_view thing) { return fmt::format("{} {}{}", n, thing, n == 1 ? "" : "s"); }

}  // namespace chitu::cli
