# SPDX-License-Identifier: Apache-2.0
"""Attention of xDiT (xfuser) by chitu_attention:

    import chitu_attention.xdit
    chitu_attention.xdit.register()
    get_runtime_state().set_attention_backend("CHITU")        # or --attention_backend CHITU, registered before the engine is made

Rings and Ulysses work: a real lse is returned. Of attention_kwargs, indices_k with cu_seqlens_k is honoured, and attn_mask is refused;
others are about how sparse backends choose blocks, and do not change what dense attention is. Gradients and dropout are refused."""

import torch
import xfuser.core.distributed.attention_backend as backends

from ._attention import attention
from ._dropin import host_list, neutral
from ._plugin import Backend, Registered, refuse

_WHERE = "chitu_attention.xdit"
_Type, _Registry = backends.AttentionBackendType, backends.ATTENTION_FUNCTION_REGISTRY


def _packed(backend, query, key, value, indices, key_starts):
    """Without the keys that are padding. All queries stay."""
    batch, heads, queries, dim = query.shape

    def flat(x):
        return x.transpose(1, 2).reshape(-1, x.shape[1], dim)

    out, lse = attention(flat(query), flat(key).index_select(0, indices), flat(value).index_select(0, indices), layout="shd", return_lse=True,
                         query_starts=[queries * i for i in range(batch + 1)], key_starts=host_list(key_starts, f"{_WHERE}: cu_seqlens_k"),
                         **backend.block.options)
    backend.count()
    return out.view(batch, queries, heads, dim).transpose(1, 2), lse.view(heads, batch, queries).transpose(0, 1)


def _function(backend):
    def chitu_attention_call(query, key, value, dropout_p=0.0, is_causal=False, attention_kwargs=None):
        given = attention_kwargs or {}
        neutral(_WHERE, "dropout_p", dropout_p, 0.0)
        if given.get("attn_mask") is not None:
            refuse(_WHERE, "attn_mask", given["attn_mask"], "there are no masks: take SDPA for this layer (cross_attention_backend)")
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            raise NotImplementedError(f"{_WHERE}: query, key or value requires a gradient: call the model under torch.no_grad()")
        if given.get("indices_k") is not None:
            if is_causal:
                refuse(_WHERE, "is_causal", True, "with indices_k it must be False")
            return _packed(backend, query, key, value, given["indices_k"], given["cu_seqlens_k"])
        return backend.with_lse(query, key, value, layout="bhsd", causal=bool(is_causal), scale=None)

    return chitu_attention_call


def register(name="CHITU", method="chitu", **options):
    """Makes `name` an attention backend of xDiT. To have several methods, register several names, such as CHITU_SAGE2.

    options: kernel and threads of attention(). Gives an object with name, report and restore()."""
    if not (name.isidentifier() and name == name.upper()):
        raise ValueError(f"name is {name!r}; xDiT takes names of capital letters, digits and underscores")
    if name in _Type._member_map_:
        raise ValueError(f"name is {name!r}, which is a backend already: restore() it first, or take another name")
    if method == "torch":
        raise ValueError("method is 'torch', which xDiT has backends of its own for")
    neutral("register", "backward", options.get("backward"), None)
    backend = Backend(method, True, options)
    member = object.__new__(_Type)
    member._name_, member._value_, member.__objclass__, member._sort_order_ = name, f"chitu_attention {name}", _Type, len(_Type._member_names_)
    _Type._member_names_.append(name)
    _Type._member_map_[name] = member
    _Type._value2member_map_[member._value_] = member
    backends.register_attention_function(member)(_function(backend))

    def undo():
        _Type._member_names_.remove(name)
        del _Type._member_map_[name], _Type._value2member_map_[member._value_], _Registry[member]

    return Registered(name, backend, undo)
