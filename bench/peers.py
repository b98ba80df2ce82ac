#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times this library on a GPU against the attention of others: PyTorch's scaled_dot_product_attention by FlashAttention and by cuDNN,
cuDNN's FP8 (package nvidia-cudnn-frontend), FlashAttention-3 (flash_attn_interface), SageAttention (sageattention).

All run in one process on the same tensors, in turn, timed by the GPU's events; "total" begins with 16-bit tensors, so quantising is in
it; "kernel" is attention alone where an interface offers it apart. What is not installed, or refuses a call, is listed with the reason.
Kernels that drive the GPU to its power limit make those after them slower: --in-a-row and --rest keep them apart.

    pip install .
    bench/peers.py --csv peers.csv

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

from library import Library

DEVICE = "cuda"
HALF = {"bf16": torch.bfloat16, "f16": torch.float16}
E4M3_LARGEST = 448
WRONG = 0.2  # relative L1 on normal tensors that no method here comes near


class Absent(Exception):
    """Why a contender cannot run: not installed, or this call refused."""


class Contender:
    """Something that computes attention. total() begins with the 16-bit tensors; kernel(), if there is one, with quantised ones.

    `sixteen_bit`: it is not this library's, and its products take 16-bit operands. All contenders are compared with the fastest of these.
    out() gives the last result as [batch, heads, tokens, dim], lse() its log-sum-exp or None."""

    def __init__(self, name, dtype, sixteen_bit, total, kernel=None, out=None, lse=None):
        self.name, self.dtype, self.sixteen_bit, self.total, self.kernel = name, dtype, sixteen_bit, total, kernel
        self.out, self.lse = out or (lambda: total()), lse or (lambda: None)


def ours(library, method, build):
    def make(tensors, dtype, causal):
        query, key, value = tensors[dtype]
        out, lse = torch.empty_like(query), torch.empty(query.shape[:3], device=query.device)
        call = library.attention(query, key, value, out, method, causal=causal)
        with_lse = library.attention(query, key, value, out, method, lse=lse, causal=causal)
        return Contender(f"chitu {method}{build}", dtype, False, call, out=lambda: with_lse(), lse=lambda: lse.unsqueeze(-1))

    return make


def torch_sdpa(backend):
    def make(tensors, dtype, causal):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}[backend]
        query, key, value = tensors[dtype]

        def total():
            with sdpa_kernel([chosen]):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)

        return Contender(f"torch SDPA {backend}", dtype, True, total)

    return make


def scale_of(x):
    """The one scale of a tensor in e4m3, as a tensor: the largest size becomes the largest of the format."""
    smallest, largest = torch.aminmax(x)
    return torch.maximum(-smallest, largest).float().clamp(min=1e-12) / E4M3_LARGEST


def to_e4m3(x):
    """Converts by PyTorch's own operations: the numbers, and the scale to multiply them with."""
    scale = scale_of(x)
    return (x * (1 / scale).to(x.dtype)).to(torch.float8_e4m3fn), scale


def cudnn_fp8(tensors, dtype, causal):
    try:
        import cudnn
    except ImportError as error:
        raise Absent("nvidia-cudnn-frontend is not installed") from error
    query, key, value = tensors[dtype]
    fp32 = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=cudnn.data_type.FP8_E4M3, intermediate_data_type=fp32, compute_data_type=fp32)
    operand = dict(dim=list(query.shape), stride=list(query.stride()), data_type=cudnn.data_type.FP8_E4M3)
    number = dict(dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=fp32)
    inputs = [graph.tensor(name=name, **operand) for name in ("query", "key", "value")]
    scales = [graph.tensor(name=name, **number)
              for name in ("query_scale", "key_scale", "value_scale", "weights_scale", "to_weights", "to_out")]
    nodes = graph.sdpa_fp8(*inputs, *scales, generate_stats=False, attn_scale=1 / math.sqrt(query.shape[3]), use_causal_mask=causal)
    # On Hopper the output is e4m3 as well. Its scale is fixed: a mean of values stays below their largest.
    nodes[0].set_output(True).set_dim(list(query.shape)).set_stride(list(query.stride())).set_data_type(cudnn.data_type.FP8_E4M3)
    for maximum in nodes[2:]:
        maximum.set_output(False).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(fp32)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    out = torch.empty_like(query, dtype=torch.float8_e4m3fn)
    workspace = torch.empty(max(graph.get_workspace_size(), 1), device=query.device, dtype=torch.uint8)
    one = lambda x: torch.full((1, 1, 1, 1), x, device=query.device, dtype=torch.float32)
    weights_scale, to_weights, to_out = one(1 / 256), one(256), one(1)

    def run(quantised):
        pack = {inputs[i]: quantised[i][0] for i in range(3)} | {scales[i]: quantised[i][1].view(1, 1, 1, 1) for i in range(3)}
        pack |= {scales[3]: weights_scale, scales[4]: to_weights, scales[5]: to_out, nodes[0]: out}
        graph.execute(pack, workspace)

    quantised = [to_e4m3(x) for x in (query, key, value)]
    to_out.copy_((1 / quantised[2][1]).view(1, 1, 1, 1))  # the values' own scale

    def result():
        run(quantised)
        return out.float() / to_out

    return Contender("cuDNN FP8", dtype, False, lambda: run([to_e4m3(x) for x in (query, key, value)]), lambda: run(quantised), result)


def flash_attention_3(fp8):
    def make(tensors, dtype, causal):
        try:
            from flash_attn_interface import flash_attn_func
        except ModuleNotFoundError as error:  # a package that is there and does not load is listed with its own reason
            raise Absent("flash_attn_interface is not installed") from error
        # Its order is [batch, tokens, heads, dim]; the copies are made outside of the times.
        query, key, value = (x.transpose(1, 2).contiguous() for x in tensors[dtype])

        def run(q, k, v, **scales):  # its kernels write the log-sum-exp whether it is asked for or not
            return flash_attn_func(q, k, v, causal=causal, return_attn_probs=True, **scales)

        if not fp8:
            total = lambda: run(query, key, value)
            return Contender("FlashAttention-3", dtype, True, total, out=lambda: total()[0].transpose(1, 2),
                             lse=lambda: total()[1].unsqueeze(-1))

        def run_fp8(quantised):
            (q, q_scale), (k, k_scale), (v, v_scale) = quantised
            spread = lambda scale: scale.expand(key.shape[0], key.shape[2])
            return run(q, k, v, q_descale=spread(q_scale), k_descale=spread(k_scale), v_descale=spread(v_scale))

        quantised = [to_e4m3(x) for x in (query, key, value)]
        kernel = lambda: run_fp8(quantised)
        return Contender("FlashAttention-3 FP8", dtype, False, lambda: run_fp8([to_e4m3(x) for x in (query, key, value)]), kernel,
                         lambda: kernel()[0].transpose(1, 2), lambda: kernel()[1].unsqueeze(-1))

    return make


def sage_attention(tensors, dtype, causal):
    try:
        from sageattention import core, sageattn
    except ModuleNotFoundError as error:
        raise Absent("sageattention is not installed") from error
    from sageattention.sm90_compile import qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf as attention

    query, key, value = tensors[dtype]
    call = lambda **more: sageattn(query, key, value, tensor_layout="HND", is_causal=causal, **more)
    # What sageattn does on Hopper before its kernel: keys less their mean, values padded to whole blocks.
    q, q_scale, k, k_scale = core.per_thread_int8_triton(query, key, key.mean(dim=2, keepdim=True), tensor_layout="HND", BLKQ=64, WARPQ=16,
                                                         BLKK=128, WARPK=128)
    padded = torch.nn.functional.pad(value, (0, 0, 0, -value.shape[2] % 128))
    v, v_scale, _ = core.per_channel_fp8(padded, tensor_layout="HND", smooth_v=False)
    out, per_thread, hnd, lse = torch.empty_like(query), 3, 1, 0

    def kernel():
        attention(q, k, v, out, q_scale, k_scale, v_scale, hnd, int(causal), per_thread, query.shape[3] ** -0.5, lse)

    return Contender("SageAttention", dtype, False, call, kernel, out=lambda: (kernel(), out)[1],
                     lse=lambda: call(return_lse=True)[1].unsqueeze(-1))


def contenders_of(libraries, methods):
    """(name, type, function that makes it); libraries: {what their names end with: Library}"""
    everyone = [(f"chitu {m}{build}", dtype, ours(library, m, build)) for m in methods for build, library in libraries.items()
                for dtype in HALF]
    everyone += [(f"torch SDPA {b}", dtype, torch_sdpa(b)) for b in ("flash", "cuDNN") for dtype in HALF]
    everyone += [("FlashAttention-3", dtype, flash_attention_3(False)) for dtype in HALF]
    everyone += [("FlashAttention-3 FP8", "bf16", flash_attention_3(True)), ("cuDNN FP8", "bf16", cudnn_fp8),
                 ("SageAttention", "bf16", sage_attention), ("SageAttention", "f16", sage_attention)]
    return everyone


def one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def tensors_for(batch, heads, length, dim, seed):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    normal = [torch.randn(batch, heads, length, dim, device=DEVICE, generator=generator) for _ in range(3)]
    return {name: [x.to(dtype) for x in normal] for name, dtype in HALF.items()}


def truth_of(query, key, value, rows, causal):
    """Exact attention in float64 of some rows of each head, and its log-sum-exp; a batch entry at a time, to save memory."""
    outs, lses = [], []
    for q, k, v in zip(query, key, value):
        scores = q[:, rows].double() @ k.double().transpose(1, 2) / math.sqrt(q.shape[2])
        if causal:
            scores.masked_fill_(torch.arange(k.shape[1], device=k.device) > rows[:, None], -math.inf)
        lses.append(torch.logsumexp(scores, -1, keepdim=True))
        outs.append(torch.softmax(scores, -1) @ v.double())
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
    for c, what, function in calls:
        function()
    for turn, done in enumerate(range(0, runs, in_a_row)):
        start = turn % len(calls)
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


def ready(everyone, tensors, causal):
    """The contenders that can run, after one call each; and (name, type, reason) of the others."""
    present, absent = [], []
    for name, dtype, make in everyone:
        try:
            contender = make(tensors, dtype, causal)
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


def rows_of(shape, present, absent, times, truths, rows):
    """A flat dictionary for each contender, absent ones too."""
    batch, heads, length, dim, causal = shape
    pairs = length * (length + 1) / 2 if causal else length * length
    operations = 4 * batch * heads * pairs * dim
    what = dict(dim=dim, heads=heads, batch=batch, length=length, causal=int(causal))
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


def print_table(shape, rows):
    batch, heads, length, dim, causal = shape
    print(f"\n## dim {dim}, {heads} heads, batch {batch}, {length} tokens, {'causal' if causal else 'not causal'}\n")
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


def output_of(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


MODULES = {"nvidia-cudnn-frontend": "cudnn", "flash-attn-3": "flash_attn_interface", "sageattention": "sageattention"}


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
                yield max(flags.tokens // length, 1), heads, length, dim, causal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="", help="PATH,... of libchitu.so; of several builds the names end with the path; else the package's")
    parser.add_argument("--methods", default="all", help="this library's: all, or NAME,... (those that no kernel takes are listed)")
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
    if flags.runs < 1 or flags.in_a_row < 1 or flags.rows < 0 or flags.rest < 0:
        parser.error("--runs and --in-a-row must be 1 or more, --rows and --rest 0 or more")
    shapes = list(shapes_of(flags))
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
    for shape in shapes:
        batch, heads, length, dim, causal = shape
        tensors = tensors_for(batch, heads, length, dim, flags.seed)
        present, absent = ready(contenders_of(libraries, methods), tensors, causal)
        if not present:
            raise SystemExit(f"peers.py: nothing runs: {absent[0][2]}")
        times = measure(present, flags.runs, flags.in_a_row, flags.rest / 1000)
        rows = torch.linspace(0, length - 1, min(flags.rows, length), device=DEVICE).long()
        truths = {d: truth_of(*tensors[d], rows, causal) for d in HALF} if flags.rows else {}
        table_rows = rows_of(shape, present, absent, times, truths, rows)
        print_table(shape, table_rows)
        table += table_rows
    if flags.csv:
        fields = list(dict.fromkeys(key for row in table for key in row))
        with open(flags.csv, "w", newline="") as file:
            file.write(f"# {shlex.join(sys.argv)}; {heading}\n")
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
