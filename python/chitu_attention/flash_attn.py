# SPDX-License-Identifier: Apache-2.0
"""Functions with the signatures and conventions of the package flash_attn (FlashAttention-2, 2.8):

    from chitu_attention.flash_attn import flash_attn_func

- causal and window_size are bottom-right; tensors are (batch, tokens, heads, dim), packed ones (tokens, heads, dim).
- return_attn_probs=True gives (out, softmax_lse, S_dmask) with an empty S_dmask; softmax_lse is +inf where a query sees no key.
- deterministic asks for nothing here: the result has the same bits each time.
- method and backward are attention()'s, the only arguments that the originals lack. Gradients are refused without backward="exact"."""

import torch

from ._attention import attention
from ._dropin import flag, neutral, packed, window, with_cache

__all__ = ["flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
           "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func", "flash_attn_with_kvcache"]


def _refuse(function, dropout_p, softcap, alibi_slopes):
    neutral(function, "dropout_p", dropout_p, 0.0)
    neutral(function, "softcap", softcap, 0.0)
    neutral(function, "alibi_slopes", alibi_slopes, None)


def _answer(result, return_attn_probs, may_be_empty):
    if not return_attn_probs:
        return result
    out, lse = result
    if may_be_empty:
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    return out, lse, out.new_empty(0)


def _part(function, name, packed, axis, count):
    if packed.dim() < 3 or packed.shape[axis] != count:
        raise ValueError(f"{function}(): {name} has shape {tuple(packed.shape)}; dimension {axis} must be {count}")
    return packed.unbind(axis)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                    deterministic=False, return_attn_probs=False, *, method="chitu", backward=None):
    """q: (batch, queries, heads, dim); k, v: (batch, keys, kv heads, dim)."""
    name = "flash_attn_func"
    _refuse(name, dropout_p, softcap, alibi_slopes)
    result = attention(q, k, v, method=method, layout="bshd", causal=bool(causal), window=window(name, window_size), scale=softmax_scale,
                       return_lse=bool(return_attn_probs), backward=backward)
    return _answer(result, return_attn_probs, q.shape[1] > k.shape[1] or k.shape[1] == 0)


def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                              deterministic=False, return_attn_probs=False, *, method="chitu", backward=None):
    """qkv: (batch, tokens, 3, heads, dim)."""
    q, k, v = _part("flash_attn_qkvpacked_func", "qkv", qkv, 2, 3)
    return flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
                           method=method, backward=backward)


def flash_attn_kvpacked_func(q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                             deterministic=False, return_attn_probs=False, *, method="chitu", backward=None):
    """kv: (batch, keys, 2, kv heads, dim)."""
    k, v = _part("flash_attn_kvpacked_func", "kv", kv, 2, 2)
    return flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
                           method=method, backward=backward)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
                           window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None, *,
                           method="chitu", backward=None):
    """q: (tokens, heads, dim) of all sequences in a row; cu_seqlens_q, cu_seqlens_k: where each begins, and the number of tokens.

    Both as lists or in CPU memory, or both as int32 on the GPU, where max_seqlen_q and max_seqlen_k must be bounds: then the call does not
    wait, and a captured CUDA graph can be replayed with others. Other tensors on a GPU are copied once for as long as they are not written
    to, which waits for it; while a graph is captured they are refused. softmax_lse is (heads, tokens)."""
    name = "flash_attn_varlen_func"
    _refuse(name, dropout_p, softcap, alibi_slopes)
    neutral(name, "block_table", block_table, None)
    sequences, empty = packed(name, q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, backward)
    result = attention(q, k, v, method=method, layout="shd", causal=bool(causal), window=window(name, window_size), scale=softmax_scale,
                       return_lse=bool(return_attn_probs), backward=backward, **sequences)
    return _answer(result, return_attn_probs, empty)


def flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                                     softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, *, method="chitu", backward=None):
    """qkv: (tokens, 3, heads, dim)."""
    q, k, v = _part("flash_attn_varlen_qkvpacked_func", "qkv", qkv, 1, 3)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap,
                                  alibi_slopes, deterministic, return_attn_probs, method=method, backward=backward)


def flash_attn_varlen_kvpacked_func(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
                                    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, *,
                                    method="chitu", backward=None):
    """kv: (tokens, 2, kv heads, dim)."""
    k, v = _part("flash_attn_varlen_kvpacked_func", "kv", kv, 1, 2)
    return flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size,
                                  softcap, alibi_slopes, deterministic, return_attn_probs, method=method, backward=backward)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
                            cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                            rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False, *, method="chitu", backward=None):
    """q: (batch, queries, heads, dim); k_cache, v_cache: (entries, capacity, kv heads, dim), of which each batch entry's first cache_seqlens
    tokens are seen, but not the first cache_leftpad of these. k, v: (batch, new tokens, kv heads, dim), written behind them, and seen.

    cache_seqlens: as int32 on the GPU it stays there, unread, unless cache_leftpad or cache_batch_idx is given; a length that is wrong is
    then not refused, but made to fit. Else all three are best as lists or in CPU memory; with cache_leftpad or cache_batch_idx, entries of
    different lengths are calls of their own. num_splits asks for nothing here, nor does rotary_interleaved without rotary_cos, which is refused."""
    name = "flash_attn_with_kvcache"
    _refuse(name, 0.0, softcap, alibi_slopes)
    for argument, value in (("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin), ("block_table", block_table)):
        neutral(name, argument, value, None)
    flag(name, "rotary_interleaved", rotary_interleaved)
    (out, lse), may_be_empty = with_cache(name, q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad, method=method,
                                          causal=bool(causal), window=window(name, window_size), scale=softmax_scale, backward=backward)
    return _answer((out, lse), True, may_be_empty)[:2] if return_softmax_lse else out
