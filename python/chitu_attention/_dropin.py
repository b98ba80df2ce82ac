# SPDX-License-Identifier: Apache-2.0
"""What functions with other libraries' signatures share: an argument is honoured, or it is refused by name."""

import torch

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


def starts(function, name, values, longest_name, longest):
    """cu_seqlens as a list, after a look at max_seqlen, which the original trusts."""
    result = host_list(values, f"{function}(): {name}")
    actual = max((b - a for a, b in zip(result, result[1:])), default=0)
    if longest is not None and int(longest) < actual:
        raise ValueError(f"{function}(): {longest_name} is {int(longest)}, but {name} has a sequence of {actual}")
    return result


def lengths(values):
    return [b - a for a, b in zip(values, values[1:])]
