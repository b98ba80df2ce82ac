# SPDX-License-Identifier: Apache-2.0
"""What functions with other libraries' signatures share: an argument is honoured, or it is refused by name."""

import torch

from ._attention import attention

UNLIMITED = (-1, -1)


def neutral(function, name, value, *allowed):
    """Refuses a value of an argument that attention() has no counterpart of. allowed: those that ask for nothing."""
    if any(value is x or (isinstance(value, (int, float, str)) and isinstance(x, (int, float, str)) and value == x) for x in allowed):
        return
    shown = f"a {type(value).__name__}" if isinstance(value, torch.Tensor) else repr(value)
    raise NotImplementedError(f"{function}(): {name} is {shown}, which chitu_attention does not have; it must be "
                              f"{' or '.join(map(repr, allowed))}")


def one_of(function, name, value, words):
    """For an argument that has no effect on the result here: at least it must be one that the original knows."""
    if value not in words:
        raise ValueError(f"{function}(): {name} is {value!r}; it must be one of {', '.join(map(repr, words))}")


def flag(function, name, value):
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise ValueError(f"{function}(): {name} is {value!r}; it must be True or False")
    return bool(value)


def window(function, window_size):
    """attention()'s window; None where no side is limited."""
    if window_size is None:
        return None
    try:
        left, right = (-1 if side is None or side < 0 else int(side) for side in window_size)
    except (TypeError, ValueError):
        raise ValueError(f"{function}(): window_size is {window_size!r}; it must be (left, right)") from None
    return None if (left, right) == UNLIMITED else (left, right)


_copies = {}  # id of a tensor -> (weak reference to it, its version, list)


def _on_host(tensor):
    return tensor.device.type == "cpu"


def _copied(tensor, name):
    """Of a tensor on a GPU. One copy serves all layers of a model, for as long as PyTorch sees no write to the tensor."""
    import weakref
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise NotImplementedError(f"{name} is on a GPU while a CUDA graph is captured, and its lengths would be baked into the graph: give a "
                                  "list or a tensor in CPU memory")
    try:
        version = tensor._version
    except RuntimeError:  # an inference tensor counts no writes, so there is no telling how long a copy holds
        return tensor.tolist()
    key = id(tensor)
    reference, known, copy = _copies.get(key, (None, None, None))
    if reference is None or reference() is not tensor or known != version:
        copy = tensor.tolist()
        _copies[key] = weakref.ref(tensor, lambda gone: _copies.pop(key, None)), version, copy
    return copy


def host_list(values, name):
    """Lengths or starts as a list."""
    if not isinstance(values, torch.Tensor):
        return [int(value) for value in values]
    if values.dim() != 1 or values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}; it must be one row of integers")
    return values.tolist() if _on_host(values) else _copied(values, name)


def _int32_on_gpu(values, tensor):
    return (isinstance(values, torch.Tensor) and isinstance(tensor, torch.Tensor) and values.is_cuda and values.device == tensor.device
            and values.dtype == torch.int32 and values.dim() == 1 and values.is_contiguous())


def packed(function, q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, backward):
    """(attention()'s options for packed sequences, whether a row may see no key). int32 starts on q's GPU stay there, unread: no call waits
    for the GPU, and a captured graph can be replayed with others."""
    if backward is None and _int32_on_gpu(cu_seqlens_q, q) and _int32_on_gpu(cu_seqlens_k, q) and max_seqlen_q and max_seqlen_k:
        if len(cu_seqlens_q) != len(cu_seqlens_k):
            raise ValueError(f"{function}(): cu_seqlens_q has {len(cu_seqlens_q)} entries, cu_seqlens_k {len(cu_seqlens_k)}; they must be equal")
        return {"query_starts": cu_seqlens_q, "key_starts": cu_seqlens_k, "max_queries": int(max_seqlen_q), "max_keys": int(max_seqlen_k)}, True
    query_starts = starts(function, "cu_seqlens_q", cu_seqlens_q, "max_seqlen_q", max_seqlen_q)
    key_starts = starts(function, "cu_seqlens_k", cu_seqlens_k, "max_seqlen_k", max_seqlen_k)
    may_be_empty = any(queries > keys or keys == 0 for queries, keys in zip(lengths(query_starts), lengths(key_starts)))
    return {"query_starts": query_starts, "key_starts": key_starts}, may_be_empty


def starts(function, name, values, longest_name, longest):
    """cu_seqlens as a list, after a look at max_seqlen, which the original trusts."""
    result = host_list(values, f"{function}(): {name}")
    actual = max((b - a for a, b in zip(result, result[1:])), default=0)
    if longest is not None and int(longest) < actual:
        raise ValueError(f"{function}(): {longest_name} is {int(longest)}, but {name} has a sequence of {actual}")
    return result


def lengths(values):
    return [b - a for a, b in zip(values, values[1:])]


def _one_each(name, values, batch, default):
    """A number for each batch entry: of None, an integer, or a row of them."""
    if values is None:
        return [default] * batch
    if isinstance(values, int):
        return [values] * batch
    result = host_list(values, name)
    if len(result) != batch:
        raise ValueError(f"{name} has {len(result)} entries, not {batch}, one for each batch entry")
    return result


def _appended(function, k_cache, v_cache, k, v, entries, ends):
    """Writes k and v behind each entry's keys; gives where these end now."""
    new = k.shape[1]
    wanted = (len(entries), new, *k_cache.shape[2:])
    for name, x in (("k", k), ("v", v)):
        if tuple(x.shape) != wanted:
            raise ValueError(f"{function}(): {name} has shape {tuple(x.shape)}; it must be {wanted}")
    for i, end in enumerate(ends):
        if end + new > k_cache.shape[1]:
            raise ValueError(f"{function}(): cache_seqlens[{i}] is {end}, and the cache has no room for {new} more of its {k_cache.shape[1]} tokens")
    for i, (entry, end) in enumerate(zip(entries, ends)):
        k_cache[entry, end:end + new], v_cache[entry, end:end + new] = k[i], v[i]
    return [end + new for end in ends]


def _with_lengths_on_gpu(q, k_cache, v_cache, k, v, cache_seqlens, **options):
    """with_cache() where the GPU alone reads cache_seqlens."""
    batch = q.shape[0]
    if k is not None:
        at = torch.arange(batch, device=q.device)[:, None], cache_seqlens[:, None].long() + torch.arange(k.shape[1], device=q.device)
        k_cache[at], v_cache[at] = k, v
        cache_seqlens = cache_seqlens + k.shape[1]
    return attention(q, k_cache[:batch], v_cache[:batch], layout="bshd", return_lse=True, key_lengths=cache_seqlens, **options), True


def with_cache(function, q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad, **options):
    """((out, lse), whether a row may see no key) of attention to the keys that each batch entry has in a cache: one call for all where they
    are the cache's first entries, else one for neighbours that have as many."""
    batch, (entries_there, capacity) = q.shape[0], k_cache.shape[:2]
    if (cache_batch_idx is None and cache_leftpad is None and (k is None) == (v is None) and v_cache.shape[:2] == k_cache.shape[:2]
            and options.get("backward") is None and _int32_on_gpu(cache_seqlens, q) and len(cache_seqlens) == batch <= entries_there
            and (k is None or k.shape == v.shape == (batch, k.shape[1], *k_cache.shape[2:]))):
        return _with_lengths_on_gpu(q, k_cache, v_cache, k, v, cache_seqlens, **options)
    entries = list(range(batch)) if cache_batch_idx is None else _one_each(f"{function}(): cache_batch_idx", cache_batch_idx, batch, 0)
    begins = _one_each(f"{function}(): cache_leftpad", cache_leftpad, batch, 0)
    ends = _one_each(f"{function}(): cache_seqlens", cache_seqlens, batch, capacity)
    if v_cache.shape[:2] != k_cache.shape[:2]:
        raise ValueError(f"{function}(): v_cache has shape {tuple(v_cache.shape)}, k_cache {tuple(k_cache.shape)}")
    for i, (entry, begin, end) in enumerate(zip(entries, begins, ends)):
        if not 0 <= entry < entries_there:
            raise ValueError(f"{function}(): cache_batch_idx[{i}] is {entry}; the cache has {entries_there} entries (q has {batch})")
        if not 0 <= begin <= end <= capacity:
            raise ValueError(f"{function}(): cache_leftpad[{i}] is {begin} and cache_seqlens[{i}] {end}, but the cache has {capacity} tokens")
    if (k is None) != (v is None):
        raise ValueError(f"{function}(): only one of k and v is given")
    if k is not None:
        if cache_seqlens is None:
            raise ValueError(f"{function}(): k is given without cache_seqlens, which says where it belongs")
        ends = _appended(function, k_cache, v_cache, k, v, entries, ends)
    may_be_empty = any(q.shape[1] > end - begin for begin, end in zip(begins, ends))
    if options.get("backward") is None and not any(begins) and entries == list(range(batch)) and len(set(ends)) > 1:
        return attention(q, k_cache[:batch], v_cache[:batch], layout="bshd", return_lse=True, key_lengths=ends, **options), may_be_empty
    parts, first = [], 0
    for i in range(1, batch + 1):
        if i < batch and (entries[i] - i, begins[i], ends[i]) == (entries[first] - first, begins[first], ends[first]):
            continue
        there = slice(entries[first], entries[first] + i - first), slice(begins[first], ends[first])
        parts.append(attention(q[first:i], k_cache[there], v_cache[there], layout="bshd", return_lse=True, **options))
        first = i
    return (parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts))), may_be_empty
