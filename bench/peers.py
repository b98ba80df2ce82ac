#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times this library on a GPU against the attention of others: PyTorch's scaled_dot_product_attention by FlashAttention and by cuDNN,
cuDNN's FP8 (package nvidia-cudnn-frontend), FlashAttention-3 (flash_attn_interface, or fa3-fwd from PyPI), SageAttention
(sageattention), comfy-kitchen.

All run in one process on the same tensors, in turn, timed by the GPU's events; "total" begins with 16-bit tensors, so quantising is in
it; "kernel" is attention alone where an interface offers it apart. What is not installed, or refuses a call, is listed with the reason.
Kernels that drive the GPU to its power limit make those after them slower: --in-a-row and --rest keep them apart.

    pip install .
    bench/peers.py --csv peers.csv
    bench/peers.py --calls bench/calls.json --methods exact,chitu

Prints Markdown; the CSV has a row for each time, and the machine in its first line.
"""

import argparse
import csv
import math
import os
import shlex
import statistics
import subprocess
import sys
import time

import torch

from contenders import HALF, Call, contenders_of, read_calls
from library import Library

DEVICE = "cuda"
WRONG = 0.2  # relative L1 on normal tensors that no method here comes near


def one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def truth_of(query, key, value, rows, call):
    """Exact attention in float64 of some rows of each head, and its log-sum-exp; a batch entry at a time, to save memory."""
    outs, lses = [], []
    last = rows + call.keys - call.queries if call.causal else torch.full_like(rows, call.keys)
    for q, k, v in zip(query, key, value):
        k, v = (x.double().repeat_interleave(call.heads // call.kv_heads, 0) for x in (k, v))
        scores = q[:, rows].double() @ k.transpose(1, 2) / math.sqrt(call.dim)
        scores.masked_fill_(torch.arange(call.keys, device=k.device) > last[:, None], -math.inf)
        lses.append(torch.logsumexp(scores, -1, keepdim=True))
        outs.append(torch.softmax(scores, -1) @ v)
    return torch.stack(outs), torch.stack(lses)


def errors_of(contender, truth, rows):
    """Relative L1 of the output, largest difference of the log-sum-exp (None if the contender gives none), on these rows."""
    out, lse = contender.out()[:, :, rows].double(), contender.lse()
    l1 = ((out - truth[0]).abs().sum() / truth[0].abs().sum()).item()
    return l1, None if lse is None else (lse[:, :, rows].double() - truth[1]).abs().max().item()


def measure(contenders, runs, in_a_row, rest):
    """Milliseconds of each run: {(contender, "total" or "kernel"): [...]}. A turn is `in_a_row` calls after `rest` seconds without work;
    each round of turns begins with another contender. Calls are queued without waiting for earlier ones, so the host's work between them
    is not timed. A first round of one call each does not count, nor does the first call after a rest, which may meet an idle clock."""
    calls = [(c, what, function) for c in contenders for what, function in (("total", c.total), ("kernel", c.kernel)) if function]
    marks = {(c, what): [] for c, what, _ in calls}
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for c, what, function in calls:
        function()
    host_seconds = time.perf_counter() - begin
    for turn, done in enumerate(range(0, runs, in_a_row)):
        start = turn % len(calls)
        if not rest:  # the GPU waits, so that the host is ahead of it: else short calls would wait for the host between their events
            torch.cuda._sleep(int(2e9 * host_seconds * in_a_row))
        for c, what, function in calls[start:] + calls[:start]:
            if rest:
                torch.cuda.synchronize()
                time.sleep(rest)
                function()
            for _ in range(min(in_a_row, runs - done)):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                function()
                end.record()
                marks[c, what].append((begin, end))
    torch.cuda.synchronize()
    return {call: [begin.elapsed_time(end) for begin, end in pairs] for call, pairs in marks.items()}


def ready(everyone, tensors, call):
    """The contenders that can run, after one call each; and (name, type, reason) of the others."""
    present, absent = [], []
    for name, dtype, make in everyone:
        try:
            contender = make(tensors, dtype, call)
            contender.total()
            if contender.kernel:
                contender.kernel()
            torch.cuda.synchronize()
            present.append(contender)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            absent.append((name, dtype, "out of memory"))
        except Exception as error:  # another library's own kinds too: it is listed, and the rest is measured
            absent.append((name, dtype, one_line(error)))
    return present, absent


def rows_of(call, present, absent, times, truths, rows):
    """A flat dictionary for each contender, absent ones too."""
    operations = 4 * call.batch * call.heads * call.pairs() * call.dim
    what = dict(dim=call.dim, heads=call.heads, batch=call.batch, length=call.keys, causal=int(call.causal))
    if call.name:
        what = dict(call=call.name, **what, kv_heads=call.kv_heads, queries=call.queries)
    errors = {c: errors_of(c, truths[c.dtype], rows) if truths else (None, None) for c in present}
    wrong = [c for c in present if truths and not errors[c][0] < WRONG]  # NaN is wrong
    fastest = min((statistics.median(times[c, "total"]) for c in present if c.sixteen_bit and c not in wrong), default=None)
    result = []
    for c in present:
        row = dict(what, contender=c.name, dtype=c.dtype, sixteen_bit=int(c.sixteen_bit), absent=None)
        for part in ("total", "kernel"):
            ms = times.get((c, part))
            median = statistics.median(ms) if ms else None
            row |= {f"{part}_ms": median, f"{part}_ms_min": min(ms) if ms else None, f"{part}_ms_max": max(ms) if ms else None,
                    f"{part}_tflops": operations / median * 1e-9 if ms else None}
        row |= dict(runs=len(times[c, "total"]), speedup=fastest / row["total_ms"] if fastest else None)
        row["rel_l1"], row["lse_max_diff"] = errors[c]
        if c in wrong:
            row["absent"] = f"its result is wrong, relative L1 {row['rel_l1']:.3g}, so its time means nothing"
        result.append(row)
    return result + [dict(what, contender=name, dtype=dtype, absent=reason) for name, dtype, reason in absent]


def print_table(call, rows):
    grouped = "" if call.kv_heads == call.heads else f" ({call.kv_heads} of keys)"
    tokens = f"{call.keys} tokens" if call.queries == call.keys else f"{call.queries} queries, {call.keys} keys"
    print(f"\n## {call.name + ': ' if call.name else ''}dim {call.dim}, {call.heads} heads{grouped}, batch {call.batch}, {tokens}, "
          f"{'causal' if call.causal else 'not causal'}\n")
    print("| | type | total ms | min ... max | TFLOPS | kernel ms | TFLOPS | to the others' fastest 16-bit | rel L1 | LSE max |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    number = lambda x, form: "-" if x is None else format(x, form)
    for r in sorted((r for r in rows if not r["absent"]), key=lambda r: r["total_ms"]):
        print(f"| {r['contender']} | {r['dtype']} | {r['total_ms']:.3f} | {r['total_ms_min']:.3f} ... {r['total_ms_max']:.3f} | "
              f"{r['total_tflops']:.0f} | {number(r['kernel_ms'], '.3f')} | {number(r['kernel_tflops'], '.0f')} | "
              f"{number(r['speedup'], '.2f')}{'x' if r['speedup'] else ''} | {number(r['rel_l1'], '.4f')} | "
              f"{number(r['lse_max_diff'], '.1e')} |")
    absent = {}
    for r in rows:
        if r["absent"]:
            absent.setdefault((r["contender"], r["absent"]), []).append(r["dtype"])
    if absent:
        print()
    for (name, reason), dtypes in absent.items():
        print(f"- absent: {name} ({', '.join(dtypes)}): {reason}")
    sys.stdout.flush()


def print_summary(table):
    """The worst and the geometric mean of each contender's speed against the others' fastest 16-bit attention, over all calls."""
    print("\n## All calls, to the others' fastest 16-bit\n\n| | type | calls | worst | | geometric mean |\n| --- | --- | ---: | ---: | --- | ---: |")
    ratios = {}
    for r in table:
        if not r["absent"] and r["speedup"]:
            ratios.setdefault((r["contender"], r["dtype"]), []).append((r["speedup"], r["call"]))
    for (name, dtype), of in ratios.items():
        worst, call = min(of)
        print(f"| {name} | {dtype} | {len(of)} | {worst:.2f}x | {call} | {statistics.geometric_mean(x for x, _ in of):.2f}x |")
    sys.stdout.flush()


def output_of(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


MODULES = {"nvidia-cudnn-frontend": "cudnn", "flash-attn-3": "flash_attn_interface", "fa3-fwd": "fa3_fwd_interface",
           "sageattention": "sageattention", "comfy-kitchen": "comfy_kitchen"}


def package(name):
    from importlib import metadata
    from importlib.util import find_spec

    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:  # an installed package has metadata, a folder on the path has none
        return f"{name} {'of unknown version' if find_spec(MODULES[name]) else 'absent'}"


def machine(library):
    here = os.path.dirname(os.path.abspath(__file__))
    commit = os.environ.get("CHITU_COMMIT") or output_of(["git", "-C", here, "describe", "--always", "--dirty"])
    driver = output_of(["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"])
    cudnn_version = torch.backends.cudnn.version()
    packages = ", ".join(package(p) for p in MODULES)
    return (f"{torch.cuda.get_device_name(0)}; driver {driver}; CUDA {torch.version.cuda}; torch {torch.__version__}; cuDNN {cudnn_version}; "
            f"{packages}; chitu {library.version()}, commit {commit}")


def count(word):
    """'4096', '4K', '1M'"""
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(word[:-1]) * units[word[-1].upper()] if word[-1:].upper() in units else int(word)


def counts(words):
    return [count(word) for word in words.split(",")]


def shapes_of(flags):
    for dim in flags.dims:
        heads = flags.channels // dim
        if heads * dim != flags.channels:
            raise SystemExit(f"--channels {flags.channels} is no multiple of {dim}, one of --dims")
        for causal in {"no": (False,), "yes": (True,), "both": (False, True)}[flags.causal]:
            for length in flags.lengths:
                if length <= flags.tokens and flags.tokens % length:
                    raise SystemExit(f"--tokens {flags.tokens} is no multiple of {length}, one of --lengths")
                yield Call(max(flags.tokens // length, 1), heads, heads, length, length, dim, causal)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="", help="PATH,... of libchitu.so; of several builds the names end with the path; else the package's")
    parser.add_argument("--methods", default="all", help="this library's: all, or NAME,... (those that no kernel takes are listed)")
    parser.add_argument("--types", type=lambda words: words.split(","), default=list(HALF), help="bf16, f16 or both")
    parser.add_argument("--calls", help="a list of calls as bench/calls.json is one, in place of --lengths ... --causal")
    parser.add_argument("--decode", action="store_true", help="with --calls: those with one query, which are left out otherwise")
    parser.add_argument("--lengths", type=counts, default=[1024, 4096, 16384], help="tokens, like 1K,4K,16K")
    parser.add_argument("--dims", type=counts, default=[128, 64], help="channels of a head")
    parser.add_argument("--tokens", type=count, default=32768, help="of a call: the batch is this over each length, at least 1")
    parser.add_argument("--channels", type=count, default=2048, help="of all heads")
    parser.add_argument("--causal", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--in-a-row", type=int, default=1, help="runs of one before it is another's turn")
    parser.add_argument("--rest", type=int, default=0, help="milliseconds before each turn in which the GPU does nothing")
    parser.add_argument("--rows", type=int, default=64, help="query rows of each head compared with float64; 0: none are")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", help="write the rows here as well")
    flags = parser.parse_args()
    if not flags.types or set(flags.types) - set(HALF):
        parser.error(f"--types are bf16 and f16, not {','.join(flags.types)}")
    if flags.runs < 1 or flags.in_a_row < 1 or flags.rows < 0 or flags.rest < 0:
        parser.error("--runs and --in-a-row must be 1 or more, --rows and --rest 0 or more")
    calls = read_calls(flags.calls, flags.decode) if flags.calls else list(shapes_of(flags))
    paths = flags.library.split(",")
    libraries = {f" ({path})" if paths[1:] else "": Library(path) for path in paths}
    library = next(iter(libraries.values()))
    methods = library.methods() if flags.methods == "all" else flags.methods.split(",")
    unknown = [m for m in methods if m not in library.methods()]
    if unknown:
        parser.error(f"--methods names {unknown[0]}; there are {', '.join(library.methods())}")
    if not torch.cuda.is_available():
        raise SystemExit("peers.py: there is no GPU that PyTorch can use")

    heading = machine(library)
    turns = f"in turns of {flags.in_a_row}" + (f" after {flags.rest} ms of rest" if flags.rest else "")
    print(f"{heading}\n\nRandom normal tensors, medians of {flags.runs} runs {turns}. total: from 16-bit tensors, quantising included. TFLOPS: "
          "4 x dim operations for each visible pair of query and key.")
    table = []
    for call in calls:
        tensors = call.tensors(DEVICE, flags.seed)
        present, absent = ready(contenders_of(libraries, methods, flags.types), tensors, call)
        if not present:
            raise SystemExit(f"peers.py: nothing runs: {absent[0][2]}")
        times = measure(present, flags.runs, flags.in_a_row, flags.rest / 1000)
        rows = torch.linspace(0, call.queries - 1, min(flags.rows, call.queries), device=DEVICE).long()
        truths = {d: truth_of(*tensors[d], rows, call) for d in flags.types} if flags.rows else {}
        table_rows = rows_of(call, present, absent, times, truths, rows)
        print_table(call, table_rows)
        table += table_rows
    if flags.calls:
        print_summary(table)
    if flags.csv:
        fields = list(dict.fromkeys(key for row in table for key in row))
        with open(flags.csv, "w", newline="") as file:
            file.write(f"# {shlex.join(sys.argv)}; {heading}\n")
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
