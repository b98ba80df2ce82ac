# SPDX-License-Identifier: Apache-2.0
"""attention() and what belongs to it, for arrays of any library.

What drop-in functions and plug-ins build on is attention() itself, by keywords; what they may rely on:

    attention(query, key, value, *, method="chitu", layout="bhsd", causal=False, window=None, scale=None, return_lse=False, out=None,
              lse=None, query_starts=None, key_starts=None, query_positions=None, key_positions=None, kernel=None, threads=0, stream=None,
              key_lengths=None, max_queries=None, max_keys=None, backward=None) -> out | (out, lse)

- layout "bshd" for (batch, tokens, heads, dim), "shd" for packed sequences (tokens, heads, dim) with query_starts and key_starts, which
  are lists or arrays in CPU memory, or int32 on the GPU with max_queries and max_keys; key_lengths of a padded batch likewise.
- lse is float32 (batch, heads, queries) for all layouts, (heads, tokens) where the layout has no "b"; natural logarithm, -inf and zeros
  for a query that sees no key.
- causal is bottom-right; query_positions=0 makes it top-left.
- It works under torch.compile and autocast, and refuses tensors that require gradients unless backward="exact"."""

import copyreg
from collections import namedtuple
from sys import modules

from . import _library  # opens the library  # noqa: F401
from . import _core
from ._recipe import Recipe

_attention = _core.attention
version = _core.version
release_workspaces = _core.release_workspaces


def _is_compiling():  # until the first tensor of PyTorch; then it is PyTorch's own function
    torch = modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def attention(query, key, value, *, method="chitu", layout="bhsd", causal=False, window=None, scale=None, return_lse=False, out=None,
              lse=None, query_starts=None, key_starts=None, query_positions=None, key_positions=None, kernel=None, threads=0, stream=None,
              key_lengths=None, max_queries=None, max_keys=None, backward=None):
    """softmax(scale * query . key^T) value, with operands quantised as `method` says.

    query: (batch, heads, queries, dim); key, value: (batch, kv heads, keys, dim); heads is a multiple of kv heads. float32, float16 or
    bfloat16, all in CPU memory or all on one GPU, with any strides except that the last dimension is contiguous; dim is at most 256. Key
    and value, or all three, may have been made by quantize(). Nothing is copied.

    method: a name of methods(), or a Recipe. "exact" does not quantise.
    layout: the order of the dimensions: b (batch, may be absent), h (heads), s (tokens), d (dim); "bshd" for (batch, tokens, heads, dim).
    causal: a query sees the keys up to its own position. The last query stands at the last key, unless positions are given.
    window: (left, right): how many tokens before and behind its own position a query sees; None or -1 for all.
    scale: of the scores; 1 / sqrt(dim) unless given.
    return_lse: return (out, lse); lse: float32 (batch, heads, queries), log of the sum of exp(score). A query that sees no key has out 0
        and lse -inf.
    out, lse: arrays to write to.
    query_starts, key_starts: packed sequences, batch 1 or a layout such as "shd": lists, or integer arrays in CPU memory, of where each
        sequence begins; the last is the number of tokens. Or int32 tensors of PyTorch on the GPU, with max_queries and max_keys: only the
        GPU reads them, so the call does not wait, and a captured graph can be replayed with others. What is wrong in them is not refused:
        starts that fall, or lie outside, count as the largest before them, or as the end.
    key_lengths: of a padded batch: how many keys each entry has, likewise a list or an array, in CPU memory or on the GPU.
    max_queries, max_keys: bounds of the lengths that are on the GPU; for key_lengths max_keys may be absent. Tokens beyond are left out.
    query_positions, key_positions: where the first token stands in the whole sequence, or (first, step); or a list of such pairs, one for
        each packed sequence or batch entry.
    kernel: a name of kernels(), to insist on it.
    threads: on the CPU; 0 is OpenMP's default.
    stream: a CUDA stream, which must be done before memory of the arrays is used again; PyTorch's current one unless given.
    backward: "exact": gradients as of exact attention, recomputed by PyTorch. None: a tensor that requires a gradient is refused.

    Raises ValueError or TypeError that names the argument, NotImplementedError if no kernel takes the call; explain() tells why."""
    if backward is None and not _is_compiling():
        return _attention(query, key, value, method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts,
                          query_positions, key_positions, kernel, threads, stream, key_lengths, max_queries, max_keys)
    from . import _torch
    return _torch.dispatched(query, key, value, method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts,
                             query_positions, key_positions, kernel, threads, stream, key_lengths, max_queries, max_keys, backward)


def explain(query, key, value, *, method="chitu", layout="bhsd", causal=False, window=None, scale=None, return_lse=False,
            query_starts=None, key_starts=None, query_positions=None, key_positions=None, kernel=None, threads=0, stream=None,
            key_lengths=None, max_queries=None, max_keys=None):
    """Which kernel takes this call of attention(), and why those before it do not: a line each. Computes nothing."""
    return _core.explain(query, key, value, method, layout, causal, window, scale, return_lse, None, None, query_starts, key_starts,
                         query_positions, key_positions, kernel, threads, stream, key_lengths, max_queries, max_keys)


def _refuse_gradients(function, **arrays):
    torch = modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return
    for name, x in arrays.items():
        if isinstance(x, torch.Tensor) and x.requires_grad:
            raise NotImplementedError(f"{name} requires a gradient, which {function}() has none of: call it under torch.no_grad()")


def quantize(x, role, *, method="chitu", layout="bhsd", starts=None, keys=None, centre=None, channels=None, threads=0, stream=None):
    """Quantises one operand once, for many calls of attention(): a KV cache. Gives a Quantized.

    x: as in attention(); on a GPU float16 or bfloat16, a dim that is a multiple of 8. role: "query", "key" or "value".
    starts: packed sequences, as in attention(), in CPU memory. keys: for a query, the keys it will meet; needed if an lse will be asked
        for. On a GPU also for values of a method that sorts keys, "chitu" for one; quantize_keys_and_values() needs none, and is faster.
    stream: as in attention(). On a GPU the call does not wait.
    centre: for keys, float32 (sequences, heads, 1, dim) to subtract instead of their mean. channels: for values of "chitu", the same shape
    to divide by instead of a sampled vector: `quantized.part("centre")` and `.part("channels")` give those of an earlier one."""
    _refuse_gradients("quantize", x=x)
    return _core.quantize(x, role, method, layout, starts, keys, centre, channels, threads, stream)


def quantize_keys_and_values(key, value, *, method="chitu", layout="bhsd", starts=None, centre=None, channels=None, threads=0, stream=None):
    """Quantises keys and values of the same shape at once: what attention() makes of them, so that its result from these two is the same to
    the bit, on a GPU not for "chitu" at dims below 128 other than 64. Gives (key, value), two of Quantized. On a GPU it takes much less time than two calls of quantize().

    The arguments are those of quantize(): centre for the keys, channels for the values."""
    _refuse_gradients("quantize_keys_and_values", key=key, value=value)
    return _core.quantize_keys_and_values(key, value, method, layout, starts, centre, channels, threads, stream)


def merge(*parts, out=None, lse=None, layout="bhsd", threads=0, stream=None):
    """Joins the attention of the same queries over disjoint sets of keys: (out, lse) of the whole.

    parts: pairs (out, lse), as attention(return_lse=True) gives them, or these arrays one after another: out, lse, out, lse, ... All in CPU
        memory, or all on one GPU; their types may differ.
    out, lse: arrays to write to, which may be those of any part; else they are like those of the first.
    threads, stream: as in attention()."""
    arrays = []
    for part in parts:
        arrays.extend(part if isinstance(part, (tuple, list)) else (part,))
    if not arrays or len(arrays) % 2:
        raise TypeError(f"merge() got {len(arrays)} arrays; it takes an out and an lse of each part, of one part or more")
    torch = modules.get("torch")
    if torch is not None and torch.is_grad_enabled():
        for i, array in enumerate([*arrays, out, lse]):
            if isinstance(array, torch.Tensor) and array.requires_grad:
                name = ("out", "lse")[i % 2] + (f" of part {i // 2}" if i < len(arrays) else "")
                raise NotImplementedError(f"{name} requires a gradient, which merge() does not compute: call it under torch.no_grad()")
    return _core.merge(arrays, out, lse, layout, threads, stream)


def _restored(stored):
    """What pickle calls for a Quantized."""
    return _core.restored(stored)


copyreg.pickle(_core.Quantized, lambda quantized: (_restored, (quantized._stored(),)))

Method = namedtuple("Method", "name summary origin recipe")
Kernel = namedtuple("Kernel", "name scores weights available device")


def methods():
    """The quantisation methods by name: name, summary, origin, recipe."""
    return {name: Method(name, summary, origin, Recipe._unpacked(packed)) for name, summary, origin, packed in _core.methods()}


def kernels():
    """The kernels of this build in the order in which they are tried: name, what scores and weights are computed in, whether this machine
    can run it, the device of its tensors."""
    return [Kernel(*row) for row in _core.kernels()]
