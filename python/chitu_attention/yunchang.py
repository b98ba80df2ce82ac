# SPDX-License-Identifier: Apache-2.0
"""Attention of yunchang (long-context-attention) by chitu_attention:

    import chitu_attention.yunchang
    chitu_attention.yunchang.register()
    attention = LongContextAttention(ring_impl_type="zigzag", attn_type="chitu")

for the rings basic, zigzag and strip, alone and with Ulysses, and for UlyssesAttention. window_size is refused in a ring, which does not
shift it for the blocks of other ranks; softcap, alibi_slopes and dropout_p are refused everywhere. A ring's gradients are refused when
backward() asks for them; UlyssesAttention has those of backward="exact".

Or, with keys and values quantised before they travel, and windows in rings too:

    from chitu_attention.yunchang import LongContextAttention    # instead of yunchang's; for inference"""

import sys

import torch
import torch.distributed
import yunchang.kernels
import yunchang.ring.ring_flash_attn
import yunchang.ring.stripe_flash_attn
import yunchang.ring.zigzag_ring_flash_attn
import yunchang.ulysses.attn_layer  # noqa: F401

from ._attention import attention
from ._dropin import UNLIMITED, neutral, window
from ._plugin import Backend, Registered
from .distributed import attention as _over_ranks
from .distributed import shard

_WHERE = "chitu_attention.yunchang"
# They import select_flash_attn_impl() by name. Not all of them hand on an attn_processor, so it is this function that learns the name.
_MODULES = ("yunchang.kernels", "yunchang.ring.ring_flash_attn", "yunchang.ring.stripe_flash_attn", "yunchang.ring.zigzag_ring_flash_attn",
            "yunchang.ulysses.attn_layer")


def _refuse(dropout_p, softcap, alibi_slopes):
    neutral(_WHERE, "dropout_p", dropout_p, 0.0)
    neutral(_WHERE, "softcap", softcap, 0.0, None)
    neutral(_WHERE, "alibi_slopes", alibi_slopes, None)


def _of_ring(backend):
    def chitu_ring_block(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                         return_softmax=False):
        _refuse(dropout_p, softcap, alibi_slopes)
        if window(_WHERE, window_size) is not None:
            neutral(_WHERE, "window_size, in a ring,", window_size, UNLIMITED)
        neutral(_WHERE, "return_softmax", return_softmax, False)
        if causal and q.shape[1] != k.shape[1]:
            raise ValueError(f"{_WHERE}: causal is given for {q.shape[1]} queries and {k.shape[1]} keys")
        return backend.with_lse(q, k, v, layout="bshd", causal=causal, scale=softmax_scale)

    return chitu_ring_block


def _of_ulysses(backend):
    def chitu_ulysses(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                      deterministic=False, return_attn_probs=False):
        _refuse(dropout_p, softcap, alibi_slopes)
        neutral(_WHERE, "return_attn_probs", return_attn_probs, False)  # UlyssesAttention would drop them
        out = attention(q, k, v, layout="bshd", causal=causal, window=window(_WHERE, window_size), scale=softmax_scale, **backend.block.options)
        backend.count()
        return out

    return chitu_ulysses


def _no_gradients(*args, **kwargs):
    raise NotImplementedError(f"{_WHERE}: a ring has no gradients: call it under torch.no_grad(), or use UlyssesAttention with "
                              "register(backward=\"exact\")")


def register(name="chitu", method="chitu", **options):
    """Makes `name` an attn_type of yunchang. method, options: as in chitu_attention.sdpa(); nothing goes to PyTorch here.

    Gives an object with name, report and restore()."""
    original = yunchang.kernels.select_flash_attn_impl
    known = {kind.value for kind in yunchang.kernels.AttnType}
    served = getattr(original, "chitu_attention", ())
    if name in known or name in served:
        raise ValueError(f"name is {name!r}, which is an attn_type already: restore() it first, or take another name")
    backend = Backend(method, True, options)
    if method == "torch":
        raise ValueError("method is 'torch', which yunchang has attn_types of its own for")
    stages = {"fwd-only": _of_ring(backend), "bwd-only": _no_gradients, "fwd-bwd": _of_ulysses(backend)}

    def select_flash_attn_impl(impl_type, stage="fwd-bwd", attn_processor=None):
        if impl_type != name:
            return original(impl_type, stage, attn_processor)
        if attn_processor is not None:
            raise ValueError(f"{_WHERE}: attn_processor is given, but attn_type {name!r} has its own")
        if stage not in stages:
            raise ValueError(f"{_WHERE}: stage is {stage!r}; it must be one of {', '.join(stages)}")
        return stages[stage]

    select_flash_attn_impl.chitu_attention = (*served, name)
    for module in _MODULES:
        sys.modules[module].select_flash_attn_impl = select_flash_attn_impl

    def undo():
        if yunchang.kernels.select_flash_attn_impl is not select_flash_attn_impl:
            raise RuntimeError(f"{_WHERE}: {name!r} is not what was registered last: restore() that first")
        for module in _MODULES:
            sys.modules[module].select_flash_attn_impl = original

    return Registered(name, backend, undo)


_SHARDINGS = {"basic": "contiguous", "zigzag": "zigzag", "strip": "striped"} | dict.fromkeys(
    ("basic_pytorch", "basic_flashinfer", "basic_npu"), "contiguous")


class LongContextAttention(torch.nn.Module):
    """yunchang's LongContextAttention by chitu_attention.distributed, with its constructor and its call: tensors (batch, tokens / ranks, heads,
    dim) that EXTRACT_FUNC_DICT[ring_impl_type] has taken from the whole, after set_seq_parallel_pg().

    attn_type, use_pack_qkv and use_sync say how the original computes, and have no effect on the result; attn_processor must be None.
    method, timeout: as in chitu_attention.distributed.attention(). Gradients are refused."""

    def __init__(self, scatter_idx=2, gather_idx=1, ring_impl_type="basic", use_pack_qkv=False, use_sync=False,
                 attn_type=yunchang.kernels.AttnType.FA, attn_processor=None, *, method="chitu", timeout=300.0):
        super().__init__()
        neutral(_WHERE, "scatter_idx", scatter_idx, 2)
        neutral(_WHERE, "gather_idx", gather_idx, 1)
        neutral(_WHERE, "attn_processor", attn_processor, None)
        if ring_impl_type not in _SHARDINGS:
            raise ValueError(f"{_WHERE}: ring_impl_type is {ring_impl_type!r}; it must be one of {', '.join(map(repr, _SHARDINGS))}")
        groups = yunchang.globals.PROCESS_GROUP
        if groups.RING_PG is None or groups.ULYSSES_PG is None:
            raise ValueError(f"{_WHERE}: there are no groups of ranks: call set_seq_parallel_pg() first")
        ring, ulysses = (torch.distributed.get_process_group_ranks(group) for group in (groups.RING_PG, groups.ULYSSES_PG))
        rank = torch.distributed.get_rank()
        self.ranks = [of_ring + of_ulysses - rank for of_ring in ring for of_ulysses in ulysses]
        self.ring, self.ulysses, self.sharding = len(ring), len(ulysses), _SHARDINGS[ring_impl_type]
        self.method, self.timeout, self._shards = method, timeout, {}

    def forward(self, query, key, value, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                alibi_slopes=None, deterministic=False, return_attn_probs=False):
        _refuse(dropout_p, softcap, alibi_slopes)
        neutral(_WHERE, "return_attn_probs", return_attn_probs, False)  # the original drops them
        lengths = tuple(x.shape[1] * self.ring * self.ulysses for x in (query, key))
        if lengths not in self._shards:
            self._shards[lengths] = shard(self.sharding, lengths[0], key_lengths=lengths[1], ring=self.ring, ulysses=self.ulysses)
        return _over_ranks(query, key, value, self._shards[lengths], layout="bshd", method=self.method, causal=causal,
                           window=window(_WHERE, window_size), scale=softmax_scale, ranks=self.ranks, timeout=self.timeout)
