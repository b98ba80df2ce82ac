# SPDX-License-Identifier: Apache-2.0
"""chitu_attention in PyTorch's registry of flash attention (torch.nn.attention): for the whole process, beneath autograd."""

import warnings

import torch

from . import _sdpa

NAME = "CHITU"


class _Handle:
    """What PyTorch calls when another implementation is activated, or the original restored."""

    def __init__(self, library):
        self.library = library

    def remove(self):
        if self.library is not None:
            self.library._destroy()
        self.library = None


def _overrides(method, strict, options):
    """{(operator, device): function}; each gets the dispatcher's keys first."""
    mode = _sdpa.SdpaMode(method, strict, options)
    cpu = torch.library.get_kernel("aten::_scaled_dot_product_flash_attention_for_cpu", "CPU")

    def reason(query, key, value, attn_mask, dropout_p, is_causal):
        found = _sdpa._reason(query, key, value, attn_mask, dropout_p, is_causal, True, None)
        if found is None:
            mode._count_ours()
        else:
            mode._count(found)
        return found

    def run(query, key, value, is_causal, scale, out, lse):
        _sdpa.attention(query, key, value, causal=is_causal, query_positions=0 if is_causal else None, scale=scale, out=out, lse=lse,
                        **mode.options)
        return out, lse

    def on_cpu(keys, query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
        if reason(query, key, value, attn_mask, dropout_p, is_causal):
            return cpu.call_boxed(keys, query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
        batch, heads, tokens, _ = query.shape  # the strides are those that PyTorch's own kernel gives: its compiler has planned for them
        lse = query.new_empty((batch, tokens, heads), dtype=torch.float32).transpose(1, 2)
        return run(query, key, value, is_causal, scale, torch.empty_like(query), lse)

    result = {("_scaled_dot_product_flash_attention_for_cpu", "CPU"): on_cpu}
    if torch.version.cuda is None:
        return result
    cuda = torch.library.get_kernel("aten::_scaled_dot_product_flash_attention", "CUDA")

    def on_cuda(keys, query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
        if reason(query, key, value, None, dropout_p, is_causal) or return_debug_mask:
            return cuda.call_boxed(keys, query, key, value, dropout_p, is_causal, return_debug_mask, scale=scale)
        out, lse = run(query, key, value, is_causal, scale, torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32))
        return (out, lse, None, None, query.shape[2], key.shape[2], query.new_empty(2, dtype=torch.uint64), query.new_empty(0, dtype=torch.uint64),
                query.new_empty(0))

    result["_scaled_dot_product_flash_attention", "CUDA"] = on_cuda
    return result


def register_flash_attention(method="chitu", *, strict=False, **options):
    """Makes "CHITU" known to torch.nn.attention, and returns that name. It is active, in all threads, after

        torch.nn.attention.activate_flash_attention_impl(chitu_attention.register_flash_attention("chitu"))

    until torch.nn.attention.restore_flash_attention_impl(). PyTorch comes here only where it would take its flash attention: on a CUDA GPU,
    within sdpa_kernel(SDPBackend.FLASH_ATTENTION). What it computes otherwise (masks on CUDA, dropout, 3-D tensors) is not seen, nor
    counted by report(); sdpa() and replace() see everything. method, strict, options: as in sdpa()."""
    _sdpa.sdpa(method, strict=strict, **options)  # checks

    def register():
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a kernel is overridden
            for (operator, device), function in _overrides(method, strict, options).items():
                library.impl(operator, function, device, with_keyset=True)
        return _Handle(library)

    torch.nn.attention.register_flash_attention_impl(NAME, register_fn=register)
    return NAME
