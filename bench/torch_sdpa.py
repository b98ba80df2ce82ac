#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times this library against PyTorch's scaled_dot_product_attention on the CPU.

Both run in one process on the same tensors, in turn, so that a drift of the machine hits them alike; the time of `chitu` has its
quantisation in it. Run it on a quiet machine:

    pip install torch==2.13.0 numpy
    pip install .
    bench/torch_sdpa.py --csv torch_sdpa.csv

Prints a Markdown table; the CSV has every run.
"""

import argparse
import csv
import math
import statistics
import time

import torch

from library import Library


def relative_l1(out, query, key, value, rows):
    """Relative L1 to float64, on some query rows of each head."""
    exact = torch.nn.functional.scaled_dot_product_attention(query[:, :, rows].double(), key.double(), value.double())
    return ((out[:, :, rows].double() - exact).abs().sum() / exact.abs().sum()).item()


def measure(contenders, runs):
    """Seconds of each run: every contender once a round, and each round begins with another one."""
    names = list(contenders)
    for name in names:
        contenders[name]()  # warm-up
    times = {name: [] for name in names}
    for run in range(runs):
        start = run % len(names)
        for name in names[start:] + names[:start]:
            time.sleep(0.05)  # until the other library's threads no longer spin
            begin = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="", help="another libchitu.so than the installed package's")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--csv", help="write every run here")
    flags = parser.parse_args()
    library = Library(flags.library)
    torch.set_num_threads(flags.threads)

    torch.manual_seed(1)
    tensors = {"f32": [torch.randn(1, flags.heads, flags.tokens, flags.dim) for _ in range(3)]}
    tensors["bf16"] = [t.bfloat16() for t in tensors["f32"]]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    contenders = {}
    for dtype, qkv in tensors.items():
        contenders["PyTorch", dtype] = lambda qkv=qkv: sdpa(*qkv)
        for method in ("exact", "chitu"):
            # Memory for the result is taken within the time, as in PyTorch's.
            contenders[method, dtype] = lambda qkv=qkv, method=method: library.attention(
                *qkv, torch.empty_like(qkv[0]), method, threads=flags.threads)()

    times = measure(contenders, flags.runs)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    fastest_torch = min(median["PyTorch", dtype] for dtype in tensors)
    operations = 4 * flags.heads * flags.tokens**2 * flags.dim
    rows = torch.linspace(0, flags.tokens - 1, min(flags.tokens, 64)).long()

    print(f"PyTorch {torch.__version__}, chitu {library.version()}; {flags.tokens} tokens, {flags.heads} heads, dim {flags.dim}, "
          f"{flags.threads} threads; medians of {flags.runs} runs in turn, quantisation included\n")
    print("| | type | ms | min ... max | GFLOPS | of PyTorch's faster one | relative L1 |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in sorted(median, key=median.get, reverse=True):
        seconds = times[name]
        error = relative_l1(contenders[name](), *tensors[name[1]], rows)
        if not math.isfinite(error) or error > 0.05:
            raise SystemExit(f"{name}: relative L1 is {error}; its time means nothing")
        print(f"| {name[0]} | {name[1]} | {median[name] * 1e3:.1f} | {min(seconds) * 1e3:.1f} ... {max(seconds) * 1e3:.1f} | "
              f"{operations / median[name] / 1e9:.0f} | {fastest_torch / median[name]:.2f}x | {error:.4f} |")

    if flags.csv:
        with open(flags.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["library", "type", "tokens", "heads", "dim", "threads", "run", "seconds"])
            for (what, dtype), seconds in times.items():
                for run, value in enumerate(seconds):
                    writer.writerow([what, dtype, flags.tokens, flags.heads, flags.dim, flags.threads, run, value])


if __name__ == "__main__":
    main()
