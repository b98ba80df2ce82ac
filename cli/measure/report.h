// SPDX-License-Identifier: Apache-2.0
// What the measuring commands print and write: Markdown tables that also read well in a terminal, CSV and JSON.
#pragma once

#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/files/files.h"

namespace chitu::cli {

using Json = nlohmann::ordered_json;

// First column to the left, the others to the right unless text is asked for.
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  bool text = false;
  std::string markdown() const;
};

// A number as JSON, which has no infinity: "inf"; null where it is unknown.
Json json_number(double x);

// Rows: an array of flat objects with the same keys, which become the header.
std::string csv(const Json& rows);

// A file that a command writes. It is begun before the work, so that a path that cannot be written fails at once, and it appears whole
// after the work.
class ReportFile {
 public:
  ReportFile(std::string option, const std::string& path);  // path empty: not asked for
  bool wanted() const { return file_.has_value(); }
  void require_extension(std::string_view extension) const;  // ".svg"; throws Error(bad_argument) where the path has another
  void write(std::string_view text);

 private:
  friend void require_different_files(std::initializer_list<const ReportFile*> files);
  std::string option_;
  std::optional<NewFile> file_;
};

// Throws Error(bad_argument) where two are one file: the second would replace the first.
void require_different_files(std::initializer_list<const ReportFile*> files);

std::string milliseconds(double x, int most_decimals = 2);
std::string scientific(double x);                           // "-" where unknown
std::string relative(double x);                             // the same; 0.0169; 1e-06 where four digits would say nothing
std::string count(std::int64_t n, std::string_view thing);  // "1 head", "2 heads"

}  // namespace chitu::cli
