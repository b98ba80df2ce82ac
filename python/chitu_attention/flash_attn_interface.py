# SPDX-License-Identifier: Apache-2.0
"""Functions with the signatures and conventions of the module flash_attn_interface (FlashAttention-3), whose order of arguments is not
FlashAttention-2's:

    from chitu_attention.flash_attn_interface import flash_attn_func

- return_attn_probs=True gives (out, softmax_lse); softmax_lse is -inf where a query sees no key.
- num_splits, pack_gqa, deterministic and sm_margin are about how the original computes: they have no effect on the result here.
- q_descale, k_descale and v_descale belong to FP8 tensors, which attention() does not take: it quantises by itself.
- method and backward are attention()'s, the only arguments that the originals lack. Gradients are refused without backward="exact"."""

from ._attention import attention
from ._dropin import flag, neutral, packed, window, with_cache

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def _refuse(function, qv, q_descale, k_descale, v_descale, attention_chunk, softcap):
    for name, value in (("qv", qv), ("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale)):
        neutral(function, name, value, None)
    neutral(function, "attention_chunk", attention_chunk, 0)
    neutral(function, "softcap", softcap, 0.0)


def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
                    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False, *,
                    method="chitu", backward=None):
    """q: (batch, queries, heads, dim); k, v: (batch, keys, kv heads, dim)."""
    name = "flash_attn_func"
    _refuse(name, qv, q_descale, k_descale, v_descale, attention_chunk, softcap)
    return attention(q, k, v, method=method, layout="bshd", causal=bool(causal), window=window(name, window_size), scale=softmax_scale,
                     return_lse=bool(return_attn_probs), backward=backward)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
                           causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
                           softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False, *,
                           method="chitu", backward=None):
    """q: (tokens, heads, dim) of all sequences in a row; as in chitu_attention.flash_attn. softmax_lse is (heads, tokens)."""
    name = "flash_attn_varlen_func"
    _refuse(name, qv, q_descale, k_descale, v_descale, attention_chunk, softcap)
    neutral(name, "seqused_q", seqused_q, None)
    neutral(name, "seqused_k", seqused_k, None)
    sequences, _ = packed(name, q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, backward)
    return attention(q, k, v, method=method, layout="shd", causal=bool(causal), window=window(name, window_size), scale=softmax_scale,
                     return_lse=bool(return_attn_probs), backward=backward, **sequences)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
                            cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
                            max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
                            causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None,
                            num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False, *, method="chitu", backward=None):
    """As in chitu_attention.flash_attn; scheduler_metadata, too, is about how the original computes, and max_seqlen_q is looked at only with
    cu_seqlens_q, which is refused."""
    name = "flash_attn_with_kvcache"
    _refuse(name, qv, q_descale, k_descale, v_descale, attention_chunk, softcap)
    for argument, value in (("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin), ("rotary_seqlens", rotary_seqlens),
                            ("page_table", page_table), ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k_new", cu_seqlens_k_new)):
        neutral(name, argument, value, None)
    flag(name, "rotary_interleaved", rotary_interleaved)
    result, _ = with_cache(name, q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad, method=method, causal=bool(causal),
                           window=window(name, window_size), scale=softmax_scale, backward=backward)
    return result if return_softmax_lse else result[0]
