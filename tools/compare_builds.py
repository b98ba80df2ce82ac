#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the times of two builds of the command `chitu` on a GPU: the quantise pass, the attention kernel, the whole call.

  tools/compare_builds.py [--method NAME,...] [--rounds N] [--csv FILE] BEFORE AFTER [-- BENCH_ARGUMENT...]
    BEFORE, AFTER    the programs
    --method         which methods, chitu unless given
    --rounds         how often each program runs each line, in turn: 5 unless given. The median of its medians counts
    --csv            writes the lines here as well
    BENCH_ARGUMENT   goes to each `chitu bench`, for example --input FILE

Each line is a shape. Its three columns have µs before, µs after, and after over before. The spread is that of BEFORE's own medians, largest
over smallest, of the whole call: what differs by less is noise.
"""
import argparse
import csv
import statistics
import subprocess
import sys
import tempfile

TIMES = ("quantise_ms", "attention_ms", "total_ms")
# Lengths, tokens a call (none: a batch of one), heads of dim 128.
SHAPES = [("1K", "32K", 16), ("4K", "32K", 16), ("4K", None, 16), ("16K", "32K", 16), ("32K", "32K", 16)]


def medians(program, method, length, tokens, heads, dim, causal, more):
    command = [program, "bench", "--device", "cuda", "--method", method, "--lengths", length, "--heads", str(heads * 128 // dim),
               "--dim", str(dim), "--runs", "33", "--in-a-row", "11", "--rest", "100", "--rows", "4", *more]
    command += ["--tokens-per-call", tokens] if tokens else []
    command += ["--causal"] if causal else []
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        subprocess.run([*command, "--csv", file.name], check=True, stdout=subprocess.DEVNULL)
        with open(file.name, newline="") as lines:
            rows = csv.DictReader(line for line in lines if not line.startswith("#"))
            row = next(row for row in rows if row["method"] == method)  # after the line of `exact`, to which all are compared
    if not row["total_ms"]:
        sys.exit(f"{program} refuses: {row['refused']}")
    return {name: 1000 * float(row[name]) for name in TIMES if row[name]} | {"rel_l1": float(row["rel_l1"])}


def main():
    arguments, _, more = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="chitu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv")
    parser.add_argument("before")
    parser.add_argument("after")
    flags = parser.parse_args(arguments.split())
    print("| method | dim | tokens | tokens a call | causal | quantise | attention | total | spread | rel. L1 before, after |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    table = []
    for method in flags.method.split(","):
        for dim in (128, 64):
            for causal in (False, True):
                for length, tokens, heads in SHAPES:
                    runs = {flags.before: [], flags.after: []}
                    for _ in range(flags.rounds):
                        for program, results in runs.items():
                            results.append(medians(program, method, length, tokens, heads, dim, causal, more.split()))
                    before, after = ({name: statistics.median(r[name] for r in results) for name in results[0]} for results in runs.values())
                    totals = [r["total_ms"] for r in runs[flags.before]]
                    line = [method, dim, length, tokens or length, "yes" if causal else "no"]
                    line += [f"{before[n]:.1f} {after[n]:.1f} {after[n] / before[n]:.3f}" if n in before and n in after else "" for n in TIMES]
                    line += [f"{max(totals) / min(totals):.3f}", f"{before['rel_l1']:.5f} {after['rel_l1']:.5f}"]
                    print("| " + " | ".join(map(str, line)) + " |", flush=True)
                    table.append(line)
    if flags.csv:
        with open(flags.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "dim", "tokens", "tokens_a_call", "causal", *TIMES, "spread", "rel_l1"])
            writer.writerows(table)


if __name__ == "__main__":
    main()
