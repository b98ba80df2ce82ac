#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/figures/speed.svg: how fast each contender of bench/peers.py is against the fastest 16-bit attention of others.

    tools/plot_peers.py bench/results/gpu_peers.csv > docs/figures/speed.svg

`chitu bench --plot` draws this library's methods alone, on the machine at hand; this draws a GPU's run that is committed, with the others.
"""

import csv
import math
import sys
import textwrap
from html import escape

# The colours of `chitu bench --plot` (Okabe and Ito's), ours in the order of the methods' table; others are drawn with dashes.
COLOURS = ["#1f2328", "#b8a200", "#56b4e9", "#cc79a7", "#009e73", "#0072b2", "#d55e00"]
OTHERS = {"FlashAttention-3 FP8": "#8250df", "SageAttention": "#8b5e3c"}
SIXTEEN_BIT = {"FlashAttention-3", "torch SDPA cuDNN", "torch SDPA flash"}
WIDTH, PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 800, 322, 210, 56, 170, 56, 66

STYLE = """<style>text{fill:#1f2328} .paper{fill:#fff} .quiet{fill:#59636e} .grid{stroke:#d1d9e0}
.bound{stroke:#cf222e;stroke-dasharray:5 4} .m0{color:#1f2328}
@media(prefers-color-scheme:dark){text{fill:#f0f6fc} .paper{fill:#0d1117} .quiet{fill:#9198a1} .grid{stroke:#3d444d}
.bound{stroke:#ff7b72} .m0{color:#f0f6fc}}</style>"""


def text(x, y, anchor, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def print_page(svg, width, below, notes):
    """The whole figure, with notes from the height `below` on."""
    for words in (part for note in notes for part in textwrap.wrap(note, 118)):
        below += 16
        svg.append(text(20, below, "start", words, 'class="quiet" font-size="11"'))
    height = below + 16
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
          "font-family=\"-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif\" font-size=\"13\">")
    print(STYLE, '<rect class="paper" width="100%" height="100%" rx="6"/>', *svg, "</svg>", sep="\n")


def look(contender, ours):
    """Attributes of a contender's line."""
    if contender in OTHERS:
        return f'style="color:{OTHERS[contender]}"', 'stroke-dasharray="3 3"'
    place = ours.index(contender)
    return ('class="m0"' if place == 0 else f'style="color:{COLOURS[place % len(COLOURS)]}"'), ""


def read(path):
    with open(path, newline="") as file:
        heading = file.readline().lstrip("# ").strip()
        rows = [row for row in csv.DictReader(file) if row["dtype"] == "bf16" and not row["absent"]]
    unknown = {row["contender"] for row in rows if not row["contender"].startswith("chitu ")} - SIXTEEN_BIT - set(OTHERS)
    if unknown:
        sys.exit(f"plot_peers.py: {path} has contenders that are neither 16-bit nor have a colour: {', '.join(sorted(unknown))}")
    return heading, rows


def panel(rows, ours, dim, causal, left, top, highest):
    mine = [row for row in rows if int(row["dim"]) == dim and int(row["causal"]) == causal]
    lengths = sorted({int(row["length"]) for row in mine})
    span = math.log(lengths[-1] / lengths[0])
    x = lambda length: left + 16 + (PANEL_WIDTH - 32) * math.log(length / lengths[0]) / span
    y = lambda speedup: top + PANEL_HEIGHT * (1 - speedup / highest)
    heads = sorted({int(row["heads"]) for row in mine})
    title = f"dim {dim}, {', '.join(map(str, heads))} heads, {'causal' if causal else 'not causal'}"
    svg = [text(left, top - 12, "start", title, 'font-weight="600"')]
    for step in range(int(highest / 0.25) + 1):
        at = step * 0.25
        svg.append(line(left, y(at), left + PANEL_WIDTH, y(at), "bound" if at == 1 else "grid"))
        svg.append(text(left - 8, y(at) + 4.5, "end", f"{at:g}x"))
    svg += [text(x(n), top + PANEL_HEIGHT + 19, "middle", f"{n // 1024}K") for n in lengths]
    for contender in [*OTHERS, *ours]:
        of_it = [row for row in mine if row["contender"] == contender]
        points = sorted((int(row["length"]), float(row["speedup"]), float(row["total_tflops"])) for row in of_it)
        if not points:
            continue
        colour, dashes = look(contender, ours)
        path = " ".join(f"{x(n):.1f},{y(s):.1f}" for n, s, _ in points)
        svg.append(f'<g {colour}><polyline points="{path}" fill="none" stroke="currentColor" stroke-width="2" {dashes}/>')
        for n, s, tflops in points:
            title = escape(f"{contender}, {n} tokens: {s:.2f}x, {tflops:.0f} TFLOPS")
            svg.append(f'<circle cx="{x(n):.1f}" cy="{y(s):.1f}" r="4" fill="currentColor"><title>{title}</title></circle>')
        svg.append("</g>")
    return svg


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    path = sys.argv[1]
    heading, rows = read(path)
    ours = list(dict.fromkeys(row["contender"] for row in rows if row["contender"].startswith("chitu ")))
    drawn = [row for row in rows if row["contender"] in (*ours, *OTHERS)]
    highest = 0.25 * math.ceil(max(float(row["speedup"]) for row in drawn) * 1.04 / 0.25)
    dims = sorted({int(row["dim"]) for row in rows}, reverse=True)
    title = "Speed-up over the fastest 16-bit attention of others, quantisation included"
    svg = [text(20, 28, "start", title, 'font-size="16" font-weight="600"')]
    svg.append(text(20, 48, "start", f"bf16 tensors on one {heading.split('; ')[1]}, normal numbers; higher is better.", 'class="quiet"'))
    fastest = f"1x, dashed: the fastest of {', '.join(sorted(SIXTEEN_BIT))} for each call, in bf16 or f16."
    svg.append(text(20, 66, "start", fastest, 'class="quiet"'))
    for i, contender in enumerate([*ours, *OTHERS]):
        at_x, at_y = 26 + 190 * (i % 4), 90 + 20 * (i // 4)
        colour, dashes = look(contender, ours)
        ends = f'x1="{at_x - 6}" y1="{at_y}" x2="{at_x + 14}" y2="{at_y}"'
        svg.append(f'<g {colour}><line {ends} stroke="currentColor" stroke-width="2" {dashes}/></g>')
        svg.append(text(at_x + 20, at_y + 4.5, "start", contender))
    for row, dim in enumerate(dims):
        for causal in (0, 1):
            left, top = LEFT + causal * (PANEL_WIDTH + GAP_X), TOP + row * (PANEL_HEIGHT + GAP_Y)
            svg += panel(drawn, ours, dim, causal, left, top, highest)
    bottom = TOP + len(dims) * (PANEL_HEIGHT + GAP_Y)
    svg.append(text(WIDTH / 2, bottom - 18, "middle", "tokens (logarithmic); 32768 tokens a call"))
    print_page(svg, WIDTH, bottom - 10, [heading, f"tools/plot_peers.py {path}"])


if __name__ == "__main__":
    main()
