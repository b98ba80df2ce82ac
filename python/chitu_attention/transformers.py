# SPDX-License-Identifier: Apache-2.0
"""Attention of transformers' models by chitu_attention:

    import chitu_attention.transformers
    chitu_attention.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="chitu")

Causal and full attention, grouped heads, sliding windows, padding that leaves one run of tokens in each row, static caches, prefill in
chunks, and cu_seq_lens_q and _k go to attention(). Other masks, dropout, position_bias and tensors that require gradients go to PyTorch as
with attn_implementation="sdpa", and are counted. What that would ignore is refused: softcap, s_aux, output_attentions."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ._dropin import host_list
from ._plugin import Backend, Registered, refuse

_WHERE = "chitu_attention.transformers"
_REFUSED = {
    "softcap": "soft-capped scores are not implemented: load the model with attn_implementation=\"eager\"",
    "s_aux": "attention sinks are not implemented: load the model with attn_implementation=\"eager\"",
    "sinks": "attention sinks are not implemented: load the model with attn_implementation=\"eager\"",
    "block_table": "paged keys are not implemented: use another cache",
    "k_cache": "paged keys are not implemented: use another cache",
    "v_cache": "paged keys are not implemented: use another cache",
}
# Of the whole model's forward(): they reach the function, and say nothing to it.
_HARMLESS = {"cache_position", "deterministic", "labels", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q", "num_items_in_batch",
             "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "seq_idx", "use_cache"}


class _Mask(torch.Tensor):
    """A 4-D mask that is made when somebody looks at it, which attention() does not: `chitu_attention`, a _Seen, says the same. What a model
    computes with it, or writes to it, it computes with the mask itself, and attention() then forgets what was said."""

    @staticmethod
    def of(make, shape, device, seen):
        mask = torch.zeros((), dtype=torch.bool, device=device).expand(shape).as_subclass(_Mask)
        mask.chitu_attention, mask._make, mask._made = seen, make, None
        return mask

    def whole(self):
        if self._made is None:
            self._made = self._make()
        return self._made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in _WITHOUT_VALUES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        if function is torch.Tensor.contiguous:  # generate() asks for it
            return args[0]
        args, kwargs = torch.utils._pytree.tree_map_only(_Mask, _looked_at, (args, kwargs or {}))
        return function(*args, **kwargs)


# What says nothing of a mask's values: programs ask for the first lines, torch.compile for the others.
_ATTRIBUTES = ("device", "dtype", "is_cuda", "layout", "ndim", "requires_grad", "shape",
               "_base", "grad", "is_leaf", "is_mkldnn", "is_nested", "is_quantized", "is_sparse")
_METHODS = ("dim", "size",
            "_is_view", "is_conj", "is_neg", "storage_offset", "stride", "untyped_storage")
_WITHOUT_VALUES = {*(getattr(torch.Tensor, name).__get__ for name in _ATTRIBUTES), *(getattr(torch.Tensor, name) for name in _METHODS)}


def _looked_at(mask):
    mask.chitu_attention = None
    return mask.whole()


class _NeedsMask(Exception):
    pass


def _is_needed(arguments):
    """Whether sdpa_mask() would make a mask, which is the only use that it has for the mask function."""

    def needs_mask(*places):
        raise _NeedsMask

    try:
        return masking_utils.sdpa_mask(**{**arguments, "mask_function": needs_mask}) is not None
    except _NeedsMask:
        return True


class _Seen:
    """What a 4-D mask says, in a form that attention() takes: it is an attribute of the mask, and so is gone if a model makes another one.

    first_query, first_key: positions; left, right: how far a query sees, -1 for all; runs: of each batch entry, (begin, end) of the keys
    that are no padding, or None; version: of the mask, which counts writes to it."""

    def __init__(self, first_query, first_key, left, right, runs, version):
        self.first_query, self.first_key, self.left, self.right, self.runs, self.version = first_query, first_key, left, right, runs, version


def _version(mask):
    return None if mask.is_inference() else mask._version  # inference tensors count no writes


def _seen(mask, query, key):
    """The _Seen of a mask, if it still holds and is about these tensors."""
    seen = None if mask is None else getattr(mask, "chitu_attention", None)
    if seen is None or mask.shape[-2:] != (query.shape[2], key.shape[2]):
        return None
    if not isinstance(mask, _Mask) and seen.version != _version(mask):
        return None
    return seen if seen.runs is None or len(seen.runs) == query.shape[0] else None


def _sides(mask_function):
    """(left, right) of transformers' own causal, full and sliding masks; None of any other."""
    if mask_function is masking_utils.causal_mask_function:
        return -1, 0
    if mask_function is masking_utils.bidirectional_mask_function:
        return -1, -1
    if getattr(mask_function, "__qualname__", "") != "and_masks.<locals>.and_mask":
        return None
    parts = mask_function.__closure__[0].cell_contents
    if len(parts) != 2 or getattr(parts[0], "__closure__", None) is None:
        return None
    overlay, base = parts
    window = overlay.__closure__[0].cell_contents
    if overlay.__qualname__ == "sliding_window_overlay.<locals>.inner_mask" and base is masking_utils.causal_mask_function:
        return window - 1, 0
    if (overlay.__qualname__ == "sliding_window_bidirectional_overlay.<locals>.inner_mask"
            and base is masking_utils.bidirectional_mask_function):
        return window, window
    return None


def _runs(padding, first_key, keys):
    """(begin, end) of each row's tokens among `keys` keys; None unless each row is one run. It waits for the GPU, as sdpa_mask() does."""
    padding = padding[:, first_key:first_key + keys].bool()
    tokens = padding.shape[1]
    if tokens == 0:
        return None
    count = padding.sum(1)
    begin = padding.int().argmax(1)
    end = tokens - padding.flip(1).int().argmax(1)
    rows = torch.stack((count, begin, end), 1).tolist()
    if any(count not in (0, end - begin) for count, begin, end in rows):
        return None
    return [(begin, end) if count else (0, 0) for count, begin, end in rows]


def _described(kv_length, q_offset, kv_offset, mask_function, padding, version):
    sides = _sides(mask_function)
    if sides is None:
        return None
    on_gpu = isinstance(q_offset, torch.Tensor) and q_offset.is_cuda
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return None
    runs = None
    if padding is not None:
        runs = _runs(padding, int(kv_offset), kv_length)
        if runs is None:
            return None
    return _Seen(int(q_offset), int(kv_offset), *sides, runs, version)


def _mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=masking_utils.causal_mask_function, attention_mask=None,
          use_vmap=False, device="cpu", **kwargs):
    """As sdpa_mask(), but where attention() takes what the mask says, it is made when somebody looks at it."""
    arguments = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset, "kv_offset": kv_offset,
                 "mask_function": mask_function, "attention_mask": attention_mask, "use_vmap": use_vmap, "device": device, **kwargs}
    if torch.compiler.is_compiling() or use_vmap:
        return masking_utils.sdpa_mask(**arguments)
    describe = lambda version: _described(kv_length, q_offset, kv_offset, mask_function, attention_mask, version)
    if isinstance(q_offset, torch.Tensor):  # a static cache: the mask may go into a compiled model, which a _Mask would compile again
        mask = masking_utils.sdpa_mask(**arguments)
        if mask is not None:
            mask = mask.contiguous()  # generate() would, and the result would lack the attribute
            mask.chitu_attention = describe(_version(mask)) if mask.dim() == 4 else None
        return mask
    if not _is_needed(arguments):
        return None
    seen = describe(None)
    if seen is None:
        return masking_utils.sdpa_mask(**arguments)
    return _Mask.of(lambda: masking_utils.sdpa_mask(**arguments), (batch_size, 1, q_length, kv_length), device, seen)


def _ranges(seen, batch, queries, keys):
    """(batch entries, keys) that one call each is for."""
    if seen.right >= 0:  # the rest of a static cache holds nothing yet
        keys = min(keys, max(0, seen.first_query + queries + seen.right - seen.first_key))
    runs = [(0, keys)] * batch if seen.runs is None else [(min(begin, keys), min(end, keys)) for begin, end in seen.runs]
    first = 0
    for i in range(1, batch + 1):
        if i == batch or runs[i] != runs[first]:
            yield slice(first, i), slice(*runs[first])
            first = i


def _by_mask(backend, query, key, value, seen, scaling):
    batch, _, queries, _ = query.shape
    window = None if seen.left < 0 and seen.right < 0 else (seen.left, seen.right)
    parts = []
    for rows, keys in _ranges(seen, batch, queries, key.shape[2]):
        part = backend.attention(query[rows], key[rows, :, keys], value[rows, :, keys], window=window, scale=scaling,
                                 query_positions=seen.first_query, key_positions=seen.first_key + keys.start)
        if isinstance(part, str):
            return part
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _packed(backend, query, key, value, starts, causal, window, scaling):
    if query.shape[0] != 1:
        raise ValueError(f"{_WHERE}: cu_seq_lens_q is given for a batch of {query.shape[0]}; packed sequences have a batch of 1")
    rows, keys = (host_list(part, f"{_WHERE}: {name}") for part, name in zip(starts, ("cu_seq_lens_q", "cu_seq_lens_k")))
    return backend.attention(query, key, value, causal=causal, window=window, scale=scaling, query_starts=rows, key_starts=keys)


def _without_mask(backend, query, key, value, causal, window, scaling):
    """As sdpa_attention_forward(): transformers gives no mask if top-left causal is right."""
    queries = query.shape[2]
    if queries == 1:
        return backend.attention(query, key, value, scale=scaling)
    if causal and key.shape[2] > queries:
        key, value = key[:, :, :queries], value[:, :, :queries]
    return backend.attention(query, key, value, causal=causal, window=window, scale=scaling, query_positions=0 if causal else None)


def _window(kwargs, causal):
    width = kwargs.get("sliding_window")
    return None if width is None else (width - 1, 0 if causal else width - 1)


def _check(kwargs):
    for name, value in kwargs.items():
        if value is None or name in _HARMLESS or name in ("cu_seq_lens_q", "cu_seq_lens_k", "sliding_window", "position_bias"):
            continue
        if name == "output_attentions":
            if value:
                refuse(_WHERE, name, value, "the weights are never in memory: load the model with attn_implementation=\"eager\"")
        elif name in _REFUSED:
            refuse(_WHERE, name, value, _REFUSED[name])
        else:
            refuse(_WHERE, name, value, "this argument is not known, and the model may rely on it: load it with attn_implementation=\"sdpa\"")
    if (kwargs.get("cu_seq_lens_q") is None) != (kwargs.get("cu_seq_lens_k") is None):
        raise ValueError(f"{_WHERE}: only one of cu_seq_lens_q and cu_seq_lens_k is given")


def _function(backend):
    def chitu_attention_forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        _check(kwargs)
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        starts = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
        if query.shape[0] == 1 and key.shape[0] > 1:  # learned queries
            query = query.expand(key.shape[0], -1, -1, -1)
        seen = _seen(attention_mask, query, key)
        if starts[0] is not None and attention_mask is not None:
            raise NotImplementedError(f"{_WHERE}: cu_seq_lens_q and attention_mask are both given: packed sequences have no padding. Call the model "
                                      "with attention_mask=None and use_cache=True, or without cu_seq_lens_q")
        result = backend.obstacle(query, key, value, dropout)
        if result is None and kwargs.get("position_bias") is not None:
            result = "position_bias is given"
        if result is None and attention_mask is not None and seen is None:
            result = "attention_mask is given"
        if result is not None and starts[0] is not None:
            raise NotImplementedError(f"{_WHERE}: cu_seq_lens_q is given, but {result}, and PyTorch would ignore cu_seq_lens_q")
        if result is None:
            if starts[0] is not None:
                result = _packed(backend, query, key, value, starts, bool(causal), _window(kwargs, causal), scaling)
            elif seen is not None:
                result = _by_mask(backend, query, key, value, seen, scaling)
            else:
                result = _without_mask(backend, query, key, value, bool(causal), _window(kwargs, causal), scaling)
        if isinstance(result, str):
            backend.to_torch(result)
            if isinstance(attention_mask, _Mask):
                attention_mask = attention_mask.whole()
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
        backend.count()
        return result.transpose(1, 2).contiguous(), None

    return chitu_attention_forward


def register(name="chitu", method="chitu", *, strict=False, **options):
    """Makes `name` an attn_implementation of transformers, for the function and its masks: neither is right without the other.

    name: without "/", "|", "flash", "sdpa" and "flex", which transformers takes for something else. method, strict, options: as in
    chitu_attention.sdpa(). Gives an object with name, report and restore()."""
    for word in ("flash", "sdpa", "flex", "paged", "eager", "/", "|"):
        if word in name:
            raise ValueError(f"name is {name!r}; transformers gives {word!r} a meaning of its own")
    backend = Backend(method, strict, options)
    interfaces = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    before = [interface.get(name) for interface in interfaces]
    if before[0] is not None and before[0].__module__ != __name__:
        raise ValueError(f"name is {name!r}, which {before[0].__module__} has registered")
    AttentionInterface.register(name, _function(backend))
    AttentionMaskInterface.register(name, _mask)

    def undo():
        for interface, value in zip(interfaces, before):
            if value is None:
                interface.pop(name, None)
            else:
                interface[name] = value

    return Registered(name, backend, undo)
