# SPDX-License-Identifier: Apache-2.0
"""torch.nn.functional.scaled_dot_product_attention by chitu_attention: for a block of code, for modules, or in PyTorch's registry.

A call is honoured in every argument, or it goes to PyTorch and is counted with the reason; `strict` raises instead."""

import sys
import threading
from contextlib import contextmanager
from types import FunctionType, ModuleType

import torch
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode

from ._attention import attention

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_SDPA = torch.nn.functional.scaled_dot_product_attention
_MULTI_HEAD = torch.nn.functional.multi_head_attention_forward
_FUSED = (torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)


# PyTorch's multi_head_attention_forward() with its call of scaled_dot_product_attention() turned to the mode that met it: a mode does not
# see what a function of PyTorch's calls itself. It stands in a module of its own, for PyTorch's compiler looks names up by module.
_modes = threading.local()
_functional = ModuleType(f"{__package__}._functional")
_functional.__dict__.update({name: value for name, value in _MULTI_HEAD.__globals__.items() if name == "__builtins__" or not name.startswith("__")})
_functional.scaled_dot_product_attention = lambda *args, **kwargs: _modes.current.call(*args, **kwargs)
_functional.has_torch_function = lambda tensors: False
sys.modules[_functional.__name__] = _functional
_multi_head = FunctionType(_MULTI_HEAD.__code__, _functional.__dict__, _MULTI_HEAD.__name__, _MULTI_HEAD.__defaults__)
_multi_head.__kwdefaults__ = _MULTI_HEAD.__kwdefaults__


@contextmanager
def _within(mode):
    before = getattr(_modes, "current", None)
    _modes.current = mode
    try:
        yield
    finally:
        _modes.current = before


class Report:
    """How many calls of scaled_dot_product_attention went where. chitu: their number; torch: {why: number}."""

    def __init__(self):
        self.chitu = 0
        self.torch = {}

    def reset(self):
        self.chitu = 0
        self.torch = {}

    def __repr__(self):
        lines = [f"{self.chitu} calls to chitu_attention"]
        lines += [f"{count} calls to PyTorch: {reason}" for reason, count in sorted(self.torch.items(), key=lambda item: -item[1])]
        return "\n".join(lines)


_all = Report()


def report(reset=False):
    """The Report of all calls in this process, within sdpa(), replace() and the registry; reset=True gives it and begins a new one."""
    global _all
    result = _all
    if reset:
        _all = Report()
    return result


def _causal(attn_mask, is_causal):
    """(causal, position of the first query or None for bottom-right); None if the mask is something else."""
    if attn_mask is None:
        return bool(is_causal), 0 if is_causal else None  # PyTorch's is_causal is top-left
    if isinstance(attn_mask, CausalBias) and not is_causal:
        return True, 0 if attn_mask.variant == CausalVariant.UPPER_LEFT else None
    return None


def _reason(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, backward):
    """Why a call cannot be honoured; None if it can."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != query.dim() or x.dim() not in (3, 4):
            return f"{name} has {x.dim()} dimensions"
        if x.dtype not in _TYPES:
            return f"{name} has dtype {x.dtype}"
        if x.device.type not in ("cpu", "cuda"):
            return f"{name} is on {x.device.type}"
        if x.stride(-1) != 1:
            return f"{name} has a strided last dimension"
        if x.requires_grad and backward is None and torch.is_grad_enabled():
            return f"{name} requires a gradient (backward=\"exact\" would give one)"
    if _causal(attn_mask, is_causal) is None:
        return "attn_mask is given"
    if dropout_p != 0:
        return "dropout_p is not 0"
    if query.shape[-1] != key.shape[-1] or value.shape[-1] != key.shape[-1]:
        return "value's dim is not key's"
    if key.shape[:-1] != value.shape[:-1]:
        return "key and value differ in shape"
    if query.dim() == 4:
        heads, kv_heads = query.shape[1], key.shape[1]
        if heads != kv_heads and not (enable_gqa and kv_heads > 0 and heads % kv_heads == 0) and kv_heads != 1:
            return "query and key differ in heads"
    if query.shape[0] != key.shape[0] and 1 not in (query.shape[0], key.shape[0]):
        return "query and key differ in batch"
    return None


def _arranged(query, key, value):
    """As (batch, heads, tokens, dim), of one batch."""
    if query.dim() == 3:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    if query.shape[0] != key.shape[0]:
        batch = max(query.shape[0], key.shape[0]) if 0 not in (query.shape[0], key.shape[0]) else 0
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
    return query, key, value


def _attend(query, key, value, attn_mask, is_causal, scale, options):
    causal, first = _causal(attn_mask, is_causal)
    out = attention(*_arranged(query, key, value), causal=causal, query_positions=first, scale=scale, **options)
    return out.squeeze(1) if query.dim() == 3 else out


class SdpaMode(TorchFunctionMode):
    """What sdpa() gives."""

    def __init__(self, method, strict, options):
        super().__init__()
        self.method, self.strict, self.options = method, strict, {"method": method, **options}
        self.report = Report()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _SDPA:
            return self.call(*args, **kwargs)
        if func is _MULTI_HEAD:
            with _within(self):
                return _multi_head(*args, **kwargs)
        if func in _FUSED:
            self._count("the fused path of nn.MultiheadAttention and nn.TransformerEncoder")
        return func(*args, **kwargs)

    def _count_ours(self):
        self.report.chitu += 1
        _all.chitu += 1

    def _count(self, reason):
        """A call goes to PyTorch."""
        if self.strict and self.method != "torch":
            raise NotImplementedError(f"scaled_dot_product_attention: {reason}, which chitu_attention cannot honour; without strict=True the call "
                                      "would go to PyTorch")
        for counted in (self.report, _all):
            counted.torch[reason] = counted.torch.get(reason, 0) + 1

    def call(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if self.method == "torch":
            reason = "method is \"torch\""
        else:
            reason = _reason(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, self.options.get("backward"))
        if reason is None:
            if torch.compiler.is_dynamo_compiling():
                out = _attend(query, key, value, attn_mask, is_causal, scale, self.options)
            else:
                try:
                    out = _attend(query, key, value, attn_mask, is_causal, scale, self.options)
                except NotImplementedError as error:
                    reason = str(error).strip().splitlines()[-1].strip()
            if reason is None:
                self._count_ours()
                return out
        self._count(reason)
        with torch._C.DisableTorchFunction():  # nor an outer block of this kind
            return _SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def sdpa(method="chitu", *, strict=False, **options):
    """A block in which scaled_dot_product_attention is computed by `method`:

        with chitu_attention.sdpa("chitu") as block:
            model(**inputs)
        print(block.report)

    method: a name, a Recipe, or "torch" to leave a part of an outer block alone. strict: a call that cannot be honoured raises
    NotImplementedError instead of going to PyTorch. options: of attention(): backward, kernel, threads. It holds in this thread, and does
    not see attention that is computed by other functions than this one."""
    unknown = options.keys() - {"backward", "kernel", "threads"}
    if unknown:
        raise TypeError(f"sdpa() has no option {sorted(unknown)[0]!r}; there are backward, kernel and threads")
    return SdpaMode(method, strict, options)


class Replaced:
    """What replace() gives: `restore()`, or the end of a `with` block, undoes it. report: of these modules' calls."""

    def __init__(self):
        self.report = Report()
        self._classes = []

    def restore(self):
        for module, before in reversed(self._classes):
            module.__class__ = before
        self._classes = []

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.restore()


def _switched(cls, make_mode):
    """A class like `cls` whose forward() runs within a block of sdpa(). A class, not an attribute, so that copies of a module work."""
    from functools import wraps

    @wraps(cls.forward)
    def forward(self, *args, **kwargs):
        with make_mode():
            return cls.forward(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__})


def _selected(module, method, only):
    """(submodule, method) of each that is switched."""
    from fnmatch import fnmatchcase
    named = dict(module.named_modules())
    if isinstance(method, dict):
        if only is not None:
            raise TypeError("only is given, but method is a choice for each module already")
        choices = method
    elif only is None:
        return [(module, method)]
    elif callable(only):
        choices = {name: method for name, m in named.items() if only(name, m)}
    else:
        patterns = [only] if isinstance(only, str) else list(only)
        choices = {name: method for pattern in patterns for name in named if fnmatchcase(name, pattern)}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(f"only is {pattern!r}, which no module is called; there are such as {', '.join(list(named)[1:4])}")
    for name in choices:
        if name not in named:
            raise ValueError(f"method names the module {name!r}, which there is not; there are such as {', '.join(list(named)[1:4])}")
    if not choices:
        raise ValueError("only selects no module")
    return [(named[name], chosen) for name, chosen in choices.items()]


def replace(module, method="chitu", *, only=None, strict=False, **options):
    """Computes scaled_dot_product_attention within `module` by `method` from now on, in all threads and under torch.compile.

        replaced = chitu_attention.replace(model, "chitu", only="*.self_attn")
        model(**inputs)
        print(replaced.report)
        replaced.restore()

    method: a name, a Recipe, or {name of a submodule: name or Recipe, or "torch"}. only: names or patterns of submodules, or a function
    of (name, submodule); None: all of `module`. An inner module's choice prevails. strict, options: as in sdpa()."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; it must be a torch.nn.Module")
    replaced = Replaced()
    for part, chosen in _selected(module, method, only):
        sdpa(chosen, strict=strict, **options)  # checks the options

        def make_mode(chosen=chosen):
            mode = SdpaMode(chosen, strict, options)
            mode.report = replaced.report
            return mode

        before = part.__class__
        part.__class__ = _switched(before, make_mode)
        replaced._classes.append((part, before))
    return replaced
