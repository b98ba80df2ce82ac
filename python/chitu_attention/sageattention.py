# SPDX-License-Identifier: Apache-2.0
"""Functions with the signatures and conventions of the package sageattention (2.2):

    from chitu_attention.sageattention import sageattn

- tensor_layout "HND" is (batch, heads, tokens, dim), "NHD" (batch, tokens, heads, dim); out has q's layout and dtype.
- return_lse=True gives (out, lse); lse is float32 (batch, heads, queries), natural, for both layouts.
- sageattn() computes by method="chitu" unless another one is given; the named variants by the method that they name: "sage" (FP16 weights
  and values) or "sage2" (FP8 weights and values).
- smooth_k and smooth_v: our methods centre keys in a way that the softmax undoes exactly, so neither value changes what is computed.
  qk_quant_gran, pv_accum_dtype and quantization_backend choose among kernels of the original: no effect here.
- The originals swallow keywords that they do not know. Here those that programs pass are honoured (causal, softmax_scale, scale), or
  accepted where they ask for nothing; all others are refused."""

from ._attention import attention
from ._dropin import UNLIMITED, flag, lengths, neutral, one_of, starts, window

__all__ = ["sageattn", "sageattn_qk_int8_pv_fp16_cuda", "sageattn_qk_int8_pv_fp16_triton", "sageattn_qk_int8_pv_fp8_cuda",
           "sageattn_qk_int8_pv_fp8_cuda_sm90", "sageattn_varlen"]

_LAYOUTS = {"HND": "bhsd", "NHD": "bshd"}
_NEUTRAL = {"dropout_p": (0.0,), "softcap": (0.0, None), "alibi_slopes": (None,), "return_softmax": (False,), "attn_mask": (None,)}
_WORDS = {
    "qk_quant_gran": ("per_warp", "per_thread"),
    "pv_accum_dtype": ("fp16", "fp16+fp32", "fp32", "fp32+fp16", "fp32+fp32"),
    "quantization_backend": ("cuda", "triton"),
}


def _keywords(function, is_causal, sm_scale, keywords):
    """(causal, scale) after a look at what else was given."""
    causal = bool(is_causal)
    for name, value in keywords.items():
        if name == "causal":
            if causal and not value:
                raise TypeError(f"{function}(): is_causal is {is_causal!r}, but causal is {value!r}")
            causal = bool(value)
        elif name in ("softmax_scale", "scale"):
            if sm_scale is not None and value is not None and value != sm_scale:
                raise TypeError(f"{function}(): {name} is {value!r}, but sm_scale, or another name for it, is {sm_scale!r}")
            sm_scale = sm_scale if value is None else value
        elif name in ("smooth_k", "smooth_v"):
            flag(function, name, value)
        elif name in _WORDS:
            one_of(function, name, value, _WORDS[name])
        elif name == "window_size":
            if window(function, value) is not None:
                neutral(function, name, value, UNLIMITED)
        elif name in _NEUTRAL:
            neutral(function, name, value, *_NEUTRAL[name])
        elif name == "deterministic":
            flag(function, name, value)
        else:
            raise TypeError(f"{function}() has no argument {name!r}")
    return causal, sm_scale


def _attend(function, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, method, backward, keywords):
    causal, scale = _keywords(function, is_causal, sm_scale, keywords)
    one_of(function, "tensor_layout", tensor_layout, tuple(_LAYOUTS))
    layout = _LAYOUTS[tensor_layout]
    tokens = layout.index("s")
    if causal and q.shape[tokens] != k.shape[tokens]:
        raise NotImplementedError(f"{function}(): is_causal is given for {q.shape[tokens]} queries and {k.shape[tokens]} keys, where the original "
                                  "does not say which keys a query sees; chitu_attention.attention() has query_positions")
    return attention(q, k, v, method=method, layout=layout, causal=causal, scale=scale, return_lse=bool(return_lse), backward=backward)


def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, *, method="chitu", backward=None, **kwargs):
    # ComfyUI sends masks to a function that names attn_mask: it must stay among kwargs, where it is refused.
    return _attend("sageattn", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, method, backward, kwargs)


def sageattn_qk_int8_pv_fp16_triton(q, k, v, tensor_layout="HND", quantization_backend="triton", is_causal=False, attn_mask=None, sm_scale=None,
                                    smooth_k=True, return_lse=False, *, backward=None, **kwargs):
    kwargs.update(quantization_backend=quantization_backend, attn_mask=attn_mask, smooth_k=smooth_k)
    return _attend("sageattn_qk_int8_pv_fp16_triton", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, "sage", backward, kwargs)


def sageattn_qk_int8_pv_fp16_cuda(q, k, v, tensor_layout="HND", is_causal=False, qk_quant_gran="per_thread", sm_scale=None, pv_accum_dtype="fp32",
                                  smooth_k=True, smooth_v=False, return_lse=False, *, backward=None, **kwargs):
    kwargs.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k, smooth_v=smooth_v)
    return _attend("sageattn_qk_int8_pv_fp16_cuda", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, "sage", backward, kwargs)


def sageattn_qk_int8_pv_fp8_cuda(q, k, v, tensor_layout="HND", is_causal=False, qk_quant_gran="per_thread", sm_scale=None,
                                 pv_accum_dtype="fp32+fp16", smooth_k=True, smooth_v=False, return_lse=False, *, backward=None, **kwargs):
    kwargs.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k, smooth_v=smooth_v)
    return _attend("sageattn_qk_int8_pv_fp8_cuda", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, "sage2", backward, kwargs)


def sageattn_qk_int8_pv_fp8_cuda_sm90(q, k, v, tensor_layout="HND", is_causal=False, qk_quant_gran="per_thread", sm_scale=None,
                                      pv_accum_dtype="fp32+fp32", smooth_k=True, return_lse=False, *, backward=None, **kwargs):
    kwargs.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k)
    return _attend("sageattn_qk_int8_pv_fp8_cuda_sm90", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, "sage2", backward, kwargs)


def sageattn_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=False, sm_scale=None, smooth_k=True, *,
                    backward=None, **kwargs):
    """q: (tokens, heads, dim) of all sequences in a row; cu_seqlens as in chitu_attention.flash_attn. Only out is returned."""
    name = "sageattn_varlen"
    causal, scale = _keywords(name, is_causal, sm_scale, {**kwargs, "smooth_k": smooth_k})
    query_starts = starts(name, "cu_seqlens_q", cu_seqlens_q, "max_seqlen_q", max_seqlen_q)
    key_starts = starts(name, "cu_seqlens_k", cu_seqlens_k, "max_seqlen_k", max_seqlen_k)
    if causal and lengths(query_starts) != lengths(key_starts):
        raise NotImplementedError(f"{name}(): is_causal is given, but cu_seqlens_q and cu_seqlens_k differ, where the original does not say which "
                                  "keys a query sees")
    return attention(q, k, v, method="sage", layout="shd", causal=causal, scale=scale, query_starts=query_starts, key_starts=key_starts,
                     backward=backward)
