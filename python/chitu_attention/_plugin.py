# SPDX-License-Identifier: Apache-2.0
"""What the plug-ins share. A call that the kernels take goes to attention(), one that PyTorch computes alike goes there and is counted,
and one that neither can honour raises."""

import torch

from . import _sdpa
from ._attention import attention


class Backend:
    """One registered name: its method, and the report of its calls. Within a module that replace() was called on, its choice and its
    report are taken instead."""

    def __init__(self, method, strict, options):
        self._block = _sdpa.sdpa(method, strict=strict, **options)  # checks the options
        self.report = self._block.report
        if isinstance(method, str) and method != "torch":
            from ._attention import methods
            if method not in methods():
                raise ValueError(f"method is {method!r}; it must be one of {', '.join(methods())}, or a Recipe")

    @property
    def block(self):
        return _sdpa.chosen() or self._block

    def obstacle(self, query, key, value, dropout_p=0.0):
        """Why attention() cannot take (batch, heads, tokens, dim) tensors without a mask; None if it can."""
        if self.block.method == "torch":
            return "method is \"torch\""
        return _sdpa._reason(query, key, value, None, dropout_p, False, True, self.block.options.get("backward"))

    def attention(self, *tensors, **options):
        """attention(), or the text of why no kernel takes the call. It is not counted."""
        if _sdpa.recorder() is not None:
            _sdpa.recorder().observe(*tensors, **options)
        if torch.compiler.is_dynamo_compiling():
            return attention(*tensors, **options, **self.block.options)
        try:
            return attention(*tensors, **options, **self.block.options)
        except NotImplementedError as error:
            return str(error).strip().splitlines()[-1].strip()

    def with_lse(self, query, key, value, *, layout, causal=False, scale=None):
        """(out, lse) by attention(), for rings, which PyTorch has no function for: what it does not take raises."""
        if self.block.method == "torch":
            raise NotImplementedError("method is \"torch\", whose scaled_dot_product_attention() gives no lse")
        result = attention(query, key, value, layout=layout, causal=causal, query_positions=0 if causal else None, scale=scale, return_lse=True,
                           **self.block.options)
        self.count()
        return result

    def count(self):
        """A call that attention() has computed."""
        self.block._count_ours()

    def to_torch(self, reason):
        """Counts a call that goes to PyTorch; raises if strict."""
        self.block._count(reason)

    def sdpa(self, *args, **kwargs):
        """scaled_dot_product_attention(), by attention() or PyTorch."""
        if _sdpa.recorder() is not None:
            _sdpa.recorder().note(*args, **kwargs)
        return self.block.call(*args, **kwargs)


class Registered:
    """What register() gives. name: what to ask the framework for; report: of its calls; `restore()`, or the end of a `with` block, undoes
    the registration."""

    def __init__(self, name, backend, undo):
        self.name, self.report, self._undo = name, backend.report, undo

    def restore(self):
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.restore()


def refuse(where, name, value, reason):
    shown = f"a {type(value).__name__}" if hasattr(value, "shape") else repr(value)
    raise NotImplementedError(f"{where}: {name} is {shown}; {reason}")
