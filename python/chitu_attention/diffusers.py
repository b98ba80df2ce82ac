# SPDX-License-Identifier: Apache-2.0
"""Attention of diffusers' models by chitu_attention:

    import chitu_attention.diffusers
    chitu_attention.diffusers.register()
    with chitu_attention.diffusers.use(pipeline.transformer, "chitu"):
        pipeline(prompt)

pipeline.transformer.set_attention_backend("chitu") works as well, but sets the backend of all other models in the process, too.
What the kernels do not take (masks, dropout, tensors that require gradients) goes to PyTorch as with the backend "native", and is counted.
Context parallelism, with rings and Ulysses, is for inference: its gradients are refused."""

from contextlib import contextmanager

import torch
from diffusers.models import attention_dispatch as dispatch

from ._plugin import Backend, Registered, refuse

_WHERE = "chitu_attention.diffusers"
_Names, _Registry = dispatch.AttentionBackendName, dispatch._AttentionBackendRegistry


def _as_native(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
    """(batch, tokens, heads, dim)."""
    if attn_mask is not None and attn_mask.ndim == 2 and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None, :]
    query, key, value = (x.permute(0, 2, 1, 3) for x in (query, key, value))
    out = backend.sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return out.permute(0, 2, 1, 3)


def _with_lse(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
    if attn_mask is not None:
        refuse(_WHERE, "attn_mask", attn_mask, "with return_lse, which rings ask for, it must be None")
    if dropout_p != 0:
        refuse(_WHERE, "dropout_p", dropout_p, "with return_lse it must be 0")
    if query.shape[2] != key.shape[2] and not enable_gqa:
        raise ValueError(f"{_WHERE}: query has {query.shape[2]} heads, key {key.shape[2]}; enable_gqa is not given")
    return backend.with_lse(query, key, value, layout="bshd", causal=is_causal, scale=scale)


def _refuse_gradients(*tensors):
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise NotImplementedError(f"{_WHERE}: query, key or value requires a gradient, and there are none under context parallelism: call the "
                                  "model under torch.no_grad()")


def _function(backend):
    def forward_op(ctx, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False,
                   _save_ctx=True, _parallel_config=None):
        if not return_lse:
            return _as_native(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        out, lse = _with_lse(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return out, lse.permute(0, 2, 1)

    # diffusers drops what a backend does not name, without a word: all arguments are here.
    def chitu_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False,
                        _parallel_config=None):
        if _parallel_config is not None:
            _refuse_gradients(query, key, value)
            return dispatch._templated_context_parallel_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse, forward_op=forward_op,
                backward_op=None, _parallel_config=_parallel_config)
        if return_lse:
            return _with_lse(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _as_native(backend, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    return chitu_attention


def _add_member(name):
    member = str.__new__(_Names, name)
    member._name_, member._value_, member.__objclass__ = name.upper(), name, _Names
    member._sort_order_ = len(_Names._member_names_)
    _Names._member_names_.append(member._name_)
    _Names._member_map_[member._name_] = member
    _Names._value2member_map_[name] = member
    return member


def _remove_member(member):
    _Names._member_names_.remove(member._name_)
    del _Names._member_map_[member._name_], _Names._value2member_map_[member._value_]
    for table in (_Registry._backends, _Registry._constraints, _Registry._supported_arg_names):
        table.pop(member, None)
    _Registry._supports_context_parallel.discard(member.value)


def register(name="chitu", method="chitu", *, strict=False, **options):
    """Makes `name` an attention backend of diffusers. To have several methods, register several names, such as chitu_sage2.

    method, strict, options: as in chitu_attention.sdpa(). Gives an object with name, report and restore()."""
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"name is {name!r}; diffusers takes names of small letters, digits and underscores")
    if name in _Names._value2member_map_:
        raise ValueError(f"name is {name!r}, which is a backend already: restore() it first, or take another name")
    backend = Backend(method, strict, options)
    active = _Registry._active_backend
    member = _add_member(name)
    _Registry.register(member, constraints=[dispatch._check_device, dispatch._check_shape], supports_context_parallel=True)(_function(backend))

    def undo():
        if _Registry._active_backend is member:
            _Registry.set_active_backend(active)
        _remove_member(member)

    return Registered(name, backend, undo)


@contextmanager
def use(model, name="chitu"):
    """A block in which `model` alone uses the backend `name`. At its end the model's and the process's backends are those of before."""
    if name not in _Names._value2member_map_:
        raise ValueError(f"name is {name!r}, which is no backend: register() it first")
    active = _Registry._active_backend
    processors = [module.processor for module in model.modules() if hasattr(getattr(module, "processor", None), "_attention_backend")]
    before = [processor._attention_backend for processor in processors]
    try:
        model.set_attention_backend(name)
        _Registry.set_active_backend(active)
        yield model
    finally:
        for processor, backend in zip(processors, before):
            processor._attention_backend = backend
        _Registry.set_active_backend(active)
