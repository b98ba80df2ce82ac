# SPDX-License-Identifier: Apache-2.0
"""Those whose attention bench/peers.py times, and the calls that they are given."""

import importlib
import json
import math
from importlib.util import find_spec
from typing import NamedTuple

import torch

HALF = {"bf16": torch.bfloat16, "f16": torch.float16}
E4M3_LARGEST = 448


class Call(NamedTuple):
    """Attention of normal tensors. Tensors are [batch, heads, tokens, dim] for whoever takes them; in memory, layout says the order.
    A causal mask is aligned to the last query and key."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    causal: bool
    layout: str = "bhsd"
    name: str = ""
    decode: bool = False

    def pairs(self):
        """Visible pairs of a query and a key, of one head."""
        hidden = self.queries * (self.queries - 1) / 2 if self.causal else 0
        return self.queries * self.keys - hidden

    def tensors(self, device, seed):
        """{type: query, key and value}"""
        generator = torch.Generator(device=device).manual_seed(seed)

        def normal(heads, tokens):
            if self.layout == "bshd":
                return torch.randn(self.batch, tokens, heads, self.dim, device=device, generator=generator).transpose(1, 2)
            return torch.randn(self.batch, heads, tokens, self.dim, device=device, generator=generator)

        drawn = [normal(self.heads, self.queries), normal(self.kv_heads, self.keys), normal(self.kv_heads, self.keys)]
        return {name: [x.to(dtype) for x in drawn] for name, dtype in HALF.items()}


def read_calls(path, decode):
    """The calls of a file, those of decoding only if `decode`. {"calls": [{"name": ..., "batch": ..., "heads": ..., "kv_heads": ...,
    "queries": ..., "keys": ..., "dim": ..., "causal": ...}, ...]}; "layout" is "bshd" unless given, "decode" false."""
    with open(path) as file:
        listed = json.load(file)["calls"]
    calls = []
    for entry in listed:
        unknown = sorted(set(entry) - set(Call._fields))
        if unknown:
            raise SystemExit(f"{path}: {entry.get('name', 'a call')} has the unknown field {unknown[0]}")
        try:
            call = Call(**{"layout": "bshd", **entry})
        except TypeError as error:
            raise SystemExit(f"{path}: {entry.get('name', 'a call')} lacks a field: {error}") from None
        if call.layout not in ("bshd", "bhsd"):
            raise SystemExit(f"{path}: {call.name} has the layout {call.layout}; there are bshd and bhsd")
        if call.decode == decode:
            calls.append(call)
    return calls


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
    def make(tensors, dtype, call):
        query, key, value = tensors[dtype]
        out, lse = torch.empty_like(query), torch.empty(query.shape[:3], device=query.device)
        total = library.attention(query, key, value, out, method, causal=call.causal)
        with_lse = library.attention(query, key, value, out, method, lse=lse, causal=call.causal)
        return Contender(f"chitu {method}{build}", dtype, False, total, out=lambda: with_lse(), lse=lambda: lse.unsqueeze(-1))

    return make


def torch_sdpa(backend):
    def make(tensors, dtype, call):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}[backend]
        query, key, value = tensors[dtype]
        if call.causal and call.queries not in (1, call.keys):
            raise Absent("its causal mask is aligned to the first query and key")
        causal, grouped = call.causal and call.queries > 1, call.heads != call.kv_heads

        def total():
            with sdpa_kernel([chosen]):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)

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


def cudnn_fp8(tensors, dtype, call):
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
    nodes = graph.sdpa_fp8(*inputs, *scales, generate_stats=False, attn_scale=1 / math.sqrt(query.shape[3]), use_causal_mask=call.causal)
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
    def make(tensors, dtype, call):
        name = next((n for n in ("flash_attn_interface", "fa3_fwd_interface") if find_spec(n)), None)
        if not name:
            raise Absent("neither flash_attn_interface nor fa3_fwd_interface is installed")
        flash_attn_func = importlib.import_module(name).flash_attn_func
        # Its order is [batch, tokens, heads, dim]; if there must be copies, they are made outside of the times.
        query, key, value = (x.transpose(1, 2).contiguous() for x in tensors[dtype])

        def run(q, k, v, **scales):  # its kernels write the log-sum-exp whether it is asked for or not
            return flash_attn_func(q, k, v, causal=call.causal, return_attn_probs=True, **scales)

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


def sage_attention(tensors, dtype, call):
    try:
        from sageattention import core, sageattn
    except ModuleNotFoundError as error:
        raise Absent("sageattention is not installed") from error
    from sageattention.sm90_compile import qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf as attention

    query, key, value = tensors[dtype]
    total = lambda **more: sageattn(query, key, value, tensor_layout="HND", is_causal=call.causal, **more)
    # What sageattn does on Hopper before its kernel: keys less their mean, values padded to whole blocks.
    q, q_scale, k, k_scale = core.per_thread_int8_triton(query, key, key.mean(dim=2, keepdim=True), tensor_layout="HND", BLKQ=64, WARPQ=16,
                                                         BLKK=128, WARPK=128)
    padded = torch.nn.functional.pad(value, (0, 0, 0, -value.shape[2] % 128))
    v, v_scale, _ = core.per_channel_fp8(padded, tensor_layout="HND", smooth_v=False)
    out, per_thread, hnd, lse = torch.empty_like(query), 3, 1, 0

    def kernel():
        attention(q, k, v, out, q_scale, k_scale, v_scale, hnd, int(call.causal), per_thread, query.shape[3] ** -0.5, lse)

    return Contender("SageAttention", dtype, False, total, kernel, out=lambda: (kernel(), out)[1],
                     lse=lambda: total(return_lse=True)[1].unsqueeze(-1))


def comfy_kitchen(tensors, dtype, call):
    try:
        from comfy_kitchen import sage_attention as kitchen
    except ModuleNotFoundError as error:
        raise Absent("comfy_kitchen is not installed") from error
    if call.causal:
        raise Absent("it has no causal mask but as a tensor of all pairs")
    query, key, value = tensors[dtype]
    quantised = kitchen.prequantize_int8_attention(query, key, value)
    return Contender("comfy-kitchen", dtype, False, lambda: kitchen.int8_attention(query, key, value),
                     lambda: kitchen.int8_attention_from_prequantized(quantised))


def contenders_of(libraries, methods, types):
    """(name, type, function that makes it); libraries: {what their names end with: Library}; types: of the tensors"""
    everyone = [(f"chitu {m}{build}", dtype, ours(library, m, build)) for m in methods for build, library in libraries.items()
                for dtype in HALF]
    everyone += [(f"torch SDPA {b}", dtype, torch_sdpa(b)) for b in ("flash", "cuDNN") for dtype in HALF]
    everyone += [("FlashAttention-3", dtype, flash_attention_3(False)) for dtype in HALF]
    everyone += [("FlashAttention-3 FP8", "bf16", flash_attention_3(True)), ("cuDNN FP8", "bf16", cudnn_fp8),
                 ("SageAttention", "bf16", sage_attention), ("SageAttention", "f16", sage_attention),
                 ("comfy-kitchen", "bf16", comfy_kitchen), ("comfy-kitchen", "f16", comfy_kitchen)]
    return [one for one in everyone if one[1] in types]
