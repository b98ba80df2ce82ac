// SPDX-License-Identifier: Apache-2.0
#include "cli/measure/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string_view>

namespace chitu::cli {
namespace {

constexpr double width = 800, title_height = 44, caption_line = 16;
constexpr std::size_t caption_letters = 118;  // of a line

// Okabe and Ito's colours (a darker yellow), which colour-blind readers tell apart, in the order of the methods' table; the first is the
// text's.
constexpr std::array<std::string_view, 8> colours{"#1f2328", "#b8a200", "#56b4e9", "#cc79a7", "#009e73", "#0072b2", "#d55e00", "#e69f00"};

std::string style() {
  std::string rules =
      "text{fill:#1f2328} .paper{fill:#fff} .quiet{fill:#59636e} .grid{stroke:#d1d9e0} .fine{stroke:#eaeef2} "
      ".bound{stroke:#cf222e;stroke-dasharray:5 4}";
  for (std::size_t c = 0; c < colours.size(); ++c) rules += fmt::format(" .m{}{{color:{}}}", c, colours[c]);
  return "<style>" + rules +
         " @media(prefers-color-scheme:dark){text{fill:#f0f6fc} .paper{fill:#0d1117} .quiet{fill:#9198a1} .grid{stroke:#3d444d} "
         ".fine{stroke:#212830} .bound{stroke:#ff7b72} .m0{color:#f0f6fc}}</style>\n";
}

std::string colour_class(const Method* method) {
  return fmt::format("m{}", static_cast<std::size_t>(method - &methods[0]) % colours.size());
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;  // XML has no such characters
    result += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, control ? '?' : c);
  }
  return result;
}

std::string text(double x, double y, std::string_view anchor, std::string_view words, std::string_view more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more, escaped(words));
}

std::string line(double x1, double y1, double x2, double y2, std::string_view kind) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2, kind);
}

std::string dot(double x, double y, const Method* method, std::string_view title) {
  return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5.5\" class=\"{}\" fill=\"currentColor\"><title>{}</title></circle>\n", x, y,
                     colour_class(method), escaped(title));
}

// Lines of at most caption_letters, broken at spaces where there are some.
std::vector<std::string> wrapped(std::string_view words) {
  std::vector<std::string> lines;
  while (!words.empty()) {
    std::size_t end = std::min(words.size(), caption_letters);
    if (end < words.size()) {
      const std::size_t space = words.rfind(' ', end);
      if (space != words.npos && space > 0) end = space;
    }
    lines.emplace_back(words.substr(0, end));
    words.remove_prefix(end);
    words.remove_prefix(std::min(words.find_first_not_of(' '), words.size()));
  }
  return lines;
}

// A whole picture: `body` is drawn between a title and the caption, from the top down to `bottom`.
std::string document(std::string_view title, const std::string& body, double bottom, const Caption& caption) {
  std::string below;
  double y = bottom;
  for (const std::string& words : {caption.machine, caption.command})
    for (const std::string& part : wrapped(words)) below += text(20, y += caption_line, "start", part, "class=\"quiet\" font-size=\"11\"");
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
             "font-family=\"-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif\" font-size=\"13\">\n",
             width, y + caption_line) +
         style() + "<rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n" +
         text(20, 28, "start", title, "font-size=\"16\" font-weight=\"600\"") + body + below + "</svg>\n";
}

constexpr int lowest = -4;  // smaller errors are all alike, and would push the others together

// Whole powers of ten around all that is drawn; what is beyond them (0, infinity) is drawn at their ends.
struct ErrorAxis {
  static constexpr double left = 130, right = width - 30;
  int low = 0, high = 0;

  ErrorAxis(std::span<const AccuracyRow> rows, double bound) {
    double smallest = bound, largest = bound;
    for (const AccuracyRow& row : rows)
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
    return left + (right - left) * (std::clamp<double>(exponent, low, high) - low) / (high - low);
  }
  std::string grid(double top, double bottom) const {
    std::string svg;
    for (int e = low; e <= high; ++e) {
      const double power = std::pow(10., e);
      for (int digit = 2; e < high && digit < 10; ++digit) svg += line(x(digit * power), top, x(digit * power), bottom, "fine");
      svg += line(x(power), top, x(power), bottom + 5, "grid") +
             text(x(power), bottom + 20, "middle", fmt::format("{}{:g}", e == lowest ? "\u2264 " : "", power));
    }
    return svg;
  }
};

// A round number of which at most six reach up to `largest`.
double round_step(double largest) {
  const double power = std::pow(10., std::floor(std::log10(largest / 6)));
  for (const double step : {1., 2., 2.5, 5.})
    if (largest / (step * power) <= 6) return step * power;
  return 10 * power;
}

// Lengths on a logarithmic axis, speed-ups on a linear one from 0.
struct SpeedAxes {
  static constexpr double left = 66, right = width - 100, top = title_height + 34, bottom = top + 290;
  double shortest = 0, longest = 0, step = 0, highest = 0;

  SpeedAxes(std::span<const std::int64_t> lengths, std::span<const SpeedLine> lines) {
    const auto [least, most] = std::minmax_element(lengths.begin(), lengths.end());
    shortest = static_cast<double>(*least), longest = static_cast<double>(*most);
    double largest = 1;
    for (const SpeedLine& of : lines)
      for (const double s : of.speedup)
        if (std::isfinite(s)) largest = std::max(largest, s);
    step = round_step(1.05 * largest);
    highest = step * std::ceil(1.05 * largest / step);
  }
  double x(std::int64_t length) const {
    return left + 14 + (right - left - 28) * std::log(static_cast<double>(length) / shortest) / std::log(longest / shortest);
  }
  double y(double speedup) const { return bottom - (bottom - top) * std::min(speedup, highest) / highest; }
  std::string grid(std::span<const std::int64_t> lengths) const {
    std::string svg;
    for (int i = 0; i * step < highest * 1.001; ++i)
      svg += line(left, y(i * step), right, y(i * step), i ? "grid" : "quiet grid") +
             text(left - 10, y(i * step) + 4.5, "end", fmt::format("{:g}x", i * step));
    double last = 0;  // where the last label ends; a length that lies too close to it has none
    for (const std::int64_t n : lengths) {
      const std::string words = n % (1 << 20) == 0 ? fmt::format("{}M", n >> 20)
                                : n % 1024 == 0    ? fmt::format("{}K", n >> 10)
                                                   : fmt::format("{}", n);
      svg += line(x(n), bottom, x(n), bottom + 5, "grid");
      if (x(n) < last) continue;
      svg += text(x(n), bottom + 20, "middle", words);
      last = x(n) + 9 * static_cast<double>(words.size());
    }
    return svg;
  }
};

// Where names go beside the ends of lines: in the order of the ends, without overlap.
std::vector<double> label_places(std::vector<double> ends) {
  constexpr double apart = 16;
  std::vector<std::size_t> order(ends.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return ends[a] < ends[b]; });
  for (std::size_t i = 1; i < order.size(); ++i) ends[order[i]] = std::max(ends[order[i]], ends[order[i - 1]] + apart);
  double below = SpeedAxes::bottom + apart;  // pushed below the axis, they come back up
  for (std::size_t i = order.size(); i-- > 0;) below = ends[order[i]] = std::min(ends[order[i]], below - apart);
  return ends;
}

}  // namespace

std::string accuracy_plot(std::span<const Method* const> methods, std::span<const AccuracyRow> rows, double bound, const Caption& caption) {
  constexpr double top = title_height + 40, row_height = 34;
  const ErrorAxis axis(rows, bound);
  const double bottom = top + row_height * static_cast<double>(rows.size());
  std::string body;
  const double share = (width - 40) / static_cast<double>(std::max<std::size_t>(methods.size(), 1));
  for (std::size_t m = 0; m < methods.size(); ++m) {
    const double x = 26 + share * static_cast<double>(m);
    body += dot(x, title_height + 14, methods[m], methods[m]->summary) + text(x + 12, title_height + 18.5, "start", methods[m]->name);
  }
  body +=
      axis.grid(top - 6, bottom) + line(axis.x(bound), top - 6, axis.x(bound), bottom, "bound") +
      text((axis.left + axis.right) / 2, bottom + 42, "middle", fmt::format("relative L1: sum |o - r| / sum |r| (dashed: {:g})", bound));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const double y = top + row_height * (static_cast<double>(r) + .5);
    body += text(axis.left - 14, y + 4.5, "end", rows[r].data) + line(axis.left, y, axis.right, y, "grid");
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const double x = rows[r].relative_l1[m];
      if (std::isnan(x)) continue;  // nothing was compared
      body += dot(axis.x(x), y, methods[m], fmt::format("{}, {}: {:.3g}", methods[m]->name, rows[r].data, x));
    }
  }
  return document("Difference to exact attention in double precision: left is better", body, bottom + 52, caption);
}

std::string speed_plot(const std::string& workload, std::span<const std::int64_t> lengths, std::span<const SpeedLine> lines,
                       const Caption& caption) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return lengths[a] < lengths[b]; });
  std::vector<std::int64_t> sorted(lengths.begin(), lengths.end());
  std::sort(sorted.begin(), sorted.end());

  const SpeedAxes axes(lengths, lines);
  std::string body = text(20, title_height + 6, "start", workload, "class=\"quiet\"") + axes.grid(sorted) +
                     line(axes.left, axes.y(1), axes.right, axes.y(1), "bound") +
                     text((axes.left + axes.right) / 2, axes.bottom + 42, "middle", "tokens (logarithmic)");
  std::vector<double> ends;
  std::vector<const Method*> drawn;
  for (const SpeedLine& of : lines) {
    std::string points, dots;
    for (const std::size_t i : order) {
      if (!std::isfinite(of.speedup[i])) continue;
      const double x = axes.x(lengths[i]), y = axes.y(of.speedup[i]);
      points += fmt::format("{:.1f},{:.1f} ", x, y);
      dots += dot(x, y, of.method, fmt::format("{}, {} tokens: {:.2f}x", of.method->name, lengths[i], of.speedup[i]));
      if (ends.size() == drawn.size()) ends.push_back(y);
      ends.back() = y;
    }
    if (points.empty()) continue;
    drawn.push_back(of.method);
    points.pop_back();
    body += fmt::format("<polyline points=\"{}\" class=\"{}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"2\"/>\n", points,
                        colour_class(of.method)) +
            dots;
  }
  const std::vector<double> places = label_places(ends);
  for (std::size_t i = 0; i < drawn.size(); ++i)
    body += dot(axes.right + 12, places[i], drawn[i], drawn[i]->summary) + text(axes.right + 22, places[i] + 4.5, "start", drawn[i]->name);
  return document("Speed-up over exact attention, quantisation included: higher is better", body, axes.bottom + 52, caption);
}

}  // namespace chitu::cli
