#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/figures/models.svg: what each method changes in a trained language model, from a run of bench/trained_models.py.

    tools/plot_models.py bench/results/trained_models.csv > docs/figures/models.svg"""

import csv
import math
import sys

from plot_peers import COLOURS, line, print_page, text

WIDTH, LEFT, PANEL, GAP, TOP, ROW = 800, 92, 312, 56, 112, 30


def read(path):
    with open(path, newline="") as file:
        heading = file.readline().lstrip("# ").strip()
        rows = [row for row in csv.DictReader(file) if row["method"] != "torch"]
    return heading, rows


def panel(title, rows, values, left, names):
    """A dot for each method on a logarithmic axis, with its number."""
    lowest = math.floor(math.log10(min(values)))
    highest = math.ceil(math.log10(max(values)) + 0.35)  # room for the last number
    x = lambda value: left + PANEL * (math.log10(value) - lowest) / (highest - lowest)
    bottom = TOP + ROW * len(rows)
    svg = [text(left, TOP - 24, "start", title, 'font-weight="600"')]
    for power in range(lowest, highest + 1):
        at = x(10.0**power)
        svg.append(f'<line x1="{at:.1f}" y1="{TOP - 12}" x2="{at:.1f}" y2="{bottom - 8}" class="grid"/>')
        if (power - lowest) % (1 if highest - lowest < 7 else 3) == 0:
            svg.append(text(at, bottom + 10, "middle", f"{10.0**power:g}", 'class="quiet"'))
    for i, (row, value) in enumerate(zip(rows, values)):
        y = TOP + ROW * i + 4
        colour = 'class="m0"' if i == 0 else f'style="color:{COLOURS[i % len(COLOURS)]}"'
        if names:
            svg.append(text(left - 12, y + 4.5, "end", row["method"]))
        svg.append(line(left, y, x(value), y, "grid"))
        svg.append(f'<g {colour}><circle cx="{x(value):.1f}" cy="{y}" r="5" fill="currentColor"/></g>')
        svg.append(text(x(value) + 10, y + 4.5, "start", f"{value:.2g}"))
    return svg


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    heading, rows = read(sys.argv[1])
    kl = [max(float(row["kl"]), 1e-10) for row in rows]
    perplexity = [max(abs(float(row["to_torch_percent"])), 1e-4) for row in rows]
    svg = [text(20, 28, "start", "SmolLM2-135M with each method's attention, against PyTorch's own", 'font-size="16" font-weight="600"'),
           text(20, 48, "start", "The project's own documents as text; lower is better. Both axes are logarithmic.", 'class="quiet"')]
    svg += panel("KL divergence of the next token, nats", rows, kl, LEFT, True)
    svg += panel("difference of the perplexity, %", rows, perplexity, LEFT + PANEL + GAP, False)
    print_page(svg, WIDTH, TOP + ROW * len(rows) + 26, [heading, f"tools/plot_models.py {sys.argv[1]}"])


if __name__ == "__main__":
    main()
