# SPDX-License-Identifier: Apache-2.0
"""ChituAttention: quantised attention for long sequences.

    import chitu_attention
    out = chitu_attention.attention(query, key, value, causal=True)

Arrays may be PyTorch's, NumPy's, CuPy's or JAX's. Importing this package imports none of them."""

from ._attention import Kernel, Method, attention, explain, kernels, merge, methods, quantize, quantize_keys_and_values, release_workspaces
from ._core import Quantized
from ._doctor import doctor
from ._recipe import Quant, Recipe, Weights

__version__ = _attention.version()

# What needs PyTorch or another package is imported when it is first used: name -> module.
_LAZY = {"flash_attn_func": ".flash_attn", "flash_attn_varlen_func": ".flash_attn", "record": "._record",
         "register_flash_attention": "._registry", "replace": "._sdpa", "report": "._sdpa", "sageattn": ".sageattention", "sageattn_varlen": ".sageattention", "sdpa": "._sdpa"}

__all__ = ["Kernel", "Method", "Quant", "Quantized", "Recipe", "Weights", "attention", "doctor", "explain", "kernels", "merge", "methods",
           "quantize", "quantize_keys_and_values", "release_workspaces", *_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
