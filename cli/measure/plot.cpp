// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace chitu::cli {
namespace {

constexpr double left = 150, right = 30, plot_width = 620, row_height = 34, legend_height = 56, axis_height = 56;
// Okabe and Ito's colours, which colour-blind readers tell apart.
constexpr std::array<std::string_view, 8> colours{"#000000", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#009e73"};

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) result += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return result;
}

std::string text(double x, double y, std::string_view anchor, std::string_view words) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escaped(words));
}

std::string line(double x1, double y1, double x2, double y2, std::string_view style) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2, style);
}

std::string dot(double x, double y, std::size_t method, std::string_view title) {
  return fmt::format(
      "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"6\" fill=\"{}\" fill-opacity=\"0.85\" stroke=\"#444\"><title>{}</title></circle>\n", x, y,
      colours[method % colours.size()], escaped(title));
}

constexpr int lowest = -4;  // smaller errors are all alike, and would push the others together

// Whole powers of ten around all that is drawn; what is beyond them (0, infinity) is drawn at their ends.
struct Axis {
  int low = 0, high = 0;
  Axis(std::span<const PlotRow> rows, double bound) {
    double smallest = bound, largest = bound;
    for (const PlotRow& row : rows)
      for (const double x : row.relative_l1) {
        if (!(x > 0) || !std::isfinite(x)) continue;
        smallest = std::min(smallest, x);
        largest = std::max(largest, x);
      }
    low = std::max(static_cast<int>(std::floor(std::log10(smallest))), lowest);
    high = std::max(static_cast<int>(std::ceil(std::log10(largest))), low + 1);
  }
  double x(double value) const {
    const double exponent = value > 0 ? std::log10(value) : low;  // log10 of infinity is clamped below
    return left + plot_width * (std::clamp<double>(exponent, low, high) - low) / (high - low);
  }
};

}  // namespace

std::string accuracy_plot(std::span<const std::string> methods, std::span<const PlotRow> rows, double bound) {
  const Axis axis(rows, bound);
  const double bottom = legend_height + row_height * static_cast<double>(rows.size());
  const double width = left + plot_width + right, height = bottom + axis_height;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  const double share = (width - 40) / static_cast<double>(std::max<std::size_t>(methods.size(), 1));
  for (std::size_t m = 0; m < methods.size(); ++m) {
    const double x = 30 + share * static_cast<double>(m);
    svg += dot(x, 24, m, methods[m]) + text(x + 12, 28.5, "start", methods[m]);
  }
  for (int e = axis.low; e <= axis.high; ++e) {
    const double x = axis.x(std::pow(10., e));
    svg += line(x, legend_height - 6, x, bottom, "stroke=\"#ddd\"") +
           text(x, bottom + 18, "middle", fmt::format("{}1e{}", e == lowest ? "\u2264 " : "", e));
  }
  svg += line(axis.x(bound), legend_height - 6, axis.x(bound), bottom, "stroke=\"#c00\" stroke-dasharray=\"5 4\"");
  svg += text(left + plot_width / 2, bottom + 42, "middle", fmt::format("relative L1 to double precision (dashed: {:g})", bound));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const double y = legend_height + row_height * (static_cast<double>(r) + .5);
    svg += text(left - 14, y + 4.5, "end", rows[r].data) + line(left, y, left + plot_width, y, "stroke=\"#eee\"");
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const double x = rows[r].relative_l1[m];
      if (std::isnan(x)) continue;  // nothing was compared
      svg += dot(axis.x(x), y, m, fmt::format("{}, {}: {:.3g}", methods[m], rows[r].data, x));
    }
  }
  return svg + "</svg>\n";
}

}  // namespace chitu::cli
