# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch. A call that is eager and needs no gradient goes straight to `_core`, which only asks the functions named in use().
All others come to route(), and most go on to the operators chitu_attention::forward and ::forward_out, which PyTorch's compiler and its
dispatch modes understand."""

import torch

from . import _attention, _core, _exact

_STRUCTURE = ("Tensor query, Tensor key, Tensor value, str method, str layout, bool causal, SymInt[]? window, float? scale, bool return_lse, "
              "SymInt[]? query_starts, SymInt[]? key_starts, SymInt[]? query_positions, SymInt[]? key_positions, str? kernel, int threads, "
              "str backward, SymInt[]? key_lengths, Tensor? device_query_starts, Tensor? device_key_starts, Tensor? device_key_lengths, "
              "SymInt? max_queries, SymInt? max_keys")
_NAMES = ("query", "key", "value", "out", "lse")

# The library lives as long as this module: when it goes, so do its operators.
_library = torch.library.Library("chitu_attention", "DEF")
_library.define(f"forward({_STRUCTURE}) -> (Tensor, Tensor)")
_library.define(f"forward_out({_STRUCTURE}, Tensor(a!) out, Tensor(b!)? lse) -> ()")
_library.define("backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, str layout, bool causal, SymInt[]? window, "
                "float? scale, SymInt[]? query_starts, SymInt[]? key_starts, SymInt[]? query_positions, SymInt[]? key_positions) -> "
                "(Tensor, Tensor, Tensor)")
_ops = torch.ops.chitu_attention


def lse_shape(query, layout):
    sizes = [query.shape[layout.index(letter)] for letter in "bhs" if letter in layout]
    return sizes


def _new_lse(out, shape):
    return torch.empty(shape, dtype=torch.float32, device=out.device)


def _new_workspace(device, size):
    return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device))


def _one(host, device):
    return host if device is None else device


def _forward(query, key, value, method, layout, causal, window, scale, return_lse, query_starts, key_starts, query_positions, key_positions,
             kernel, threads, backward, key_lengths, device_query_starts, device_key_starts, device_key_lengths, max_queries, max_keys):
    answer = _core.run(query, key, value, _method(method), layout, causal, window, scale, return_lse, None, None,
                       _one(query_starts, device_query_starts), _one(key_starts, device_key_starts), _exact.positions(query_positions),
                       _exact.positions(key_positions), kernel, threads, None, _one(key_lengths, device_key_lengths), max_queries, max_keys)
    return answer if return_lse else (answer, query.new_empty(0, dtype=torch.float32))


def _forward_out(query, key, value, method, layout, causal, window, scale, return_lse, query_starts, key_starts, query_positions, key_positions,
                 kernel, threads, backward, key_lengths, device_query_starts, device_key_starts, device_key_lengths, max_queries, max_keys, out,
                 lse):
    _core.run(query, key, value, _method(method), layout, causal, window, scale, return_lse, out, lse,
              _one(query_starts, device_query_starts), _one(key_starts, device_key_starts), _exact.positions(query_positions),
              _exact.positions(key_positions), kernel, threads, None, _one(key_lengths, device_key_lengths), max_queries, max_keys)


def _check_devices(query, **others):
    for name, tensor in others.items():
        if tensor is not None and tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; all must be on one device")


def _forward_fake(query, key, value, method, layout, causal, window, scale, return_lse, *rest):
    _check_devices(query, key=key, value=value)
    return torch.empty_like(query), query.new_empty(lse_shape(query, layout) if return_lse else [0], dtype=torch.float32)


def _forward_out_fake(query, key, value, *rest):
    _check_devices(query, key=key, value=value, out=rest[-2], lse=rest[-1])


def _guard_gradients(tensors):
    if not torch.is_grad_enabled():
        return
    for name, tensor in zip(_NAMES, tensors):
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            raise NotImplementedError(
                f"{name} requires a gradient, which quantised attention has none of: call it under torch.no_grad() or torch.inference_mode(), give "
                f"{name}.detach(), or ask for backward=\"exact\", whose gradients are those of exact attention")


def _forward_out_autograd(query, key, value, *rest):
    _guard_gradients((query, key, value, *rest[-2:]))
    with torch._C._AutoDispatchBelowAutograd():
        _ops.forward_out(query, key, value, *rest)


def _setup_context(ctx, inputs, output):
    query, key, value, _, layout, causal, window, scale, ctx.return_lse, *more, _, _, ctx.kind, _, _, _, _, _, _ = inputs
    ctx.options = layout, causal, window, scale, *more
    ctx.save_for_backward(query, key, value)


def _backward(ctx, grad_out, grad_lse):
    if ctx.kind != "exact":
        raise NotImplementedError("quantised attention has no gradient: call it under torch.no_grad(), or ask for backward=\"exact\", whose "
                                  "gradients are those of exact attention")
    gradients = _ops.backward(grad_out, grad_lse if ctx.return_lse else None, *ctx.saved_tensors, *ctx.options)
    return *gradients, *[None] * 19


def _no_second_backward(ctx, *gradients):
    raise NotImplementedError("attention has no second derivative")


for _device in ("CPU", "CUDA"):
    _library.impl("forward", _forward, _device)
    _library.impl("forward_out", _forward_out, _device)
    _library.impl("backward", _exact.backward, _device)
_library.impl("forward_out", _forward_out_autograd, "Autograd")
torch.library.register_fake("chitu_attention::forward", _forward_fake, lib=_library)
torch.library.register_fake("chitu_attention::forward_out", _forward_out_fake, lib=_library)
torch.library.register_fake("chitu_attention::backward", lambda grad_out, grad_lse, *qkv_and_options: tuple(
    torch.empty_like(x) for x in qkv_and_options[:3]), lib=_library)
torch.library.register_autograd("chitu_attention::forward", _backward, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("chitu_attention::backward", _no_second_backward, lib=_library)


def _method(text):
    """A method's name, or a recipe as the operators carry it: "recipe:" and its numbers."""
    from ._recipe import Recipe
    if not text.startswith("recipe:"):
        return text
    return Recipe._of_numbers([float(number) if "." in number else int(number) for number in text[7:].split(",")])


def _positions(given):
    """As the operators take it: first, step; for a pair for each sequence: how many there are, and all of them behind each other."""
    if given is None or isinstance(given, (int, torch.SymInt)):
        return given if given is None else [given, 1]
    if len(given) and not isinstance(given[0], (int, torch.SymInt)) and hasattr(given[0], "__len__"):
        return [len(given), *(int(number) for pair in given for number in pair)]
    return list(given)


def _lengths(given):
    """As the operators take it: (list, None), or (None, tensor on a GPU)."""
    if given is None:
        return None, None
    if isinstance(given, torch.Tensor):
        return (given.tolist(), None) if given.device.type == "cpu" else (None, given)
    return list(given), None


def dispatched(query, key, value, method, layout, causal, window, scale, return_lse, out, lse, query_starts, key_starts, query_positions,
               key_positions, kernel, threads, stream, key_lengths, max_queries, max_keys, backward):
    """A call through PyTorch's dispatcher: when compiling, under a dispatch mode, for gradients."""
    for name, tensor in zip(_NAMES, (query, key, value)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; when compiling or for gradients it must be a tensor of PyTorch")
    if stream is not None:
        raise NotImplementedError("stream cannot be given when compiling or for gradients: the current stream is taken")
    if backward not in (None, "exact"):
        raise ValueError(f"backward is {backward!r}; it must be None or 'exact'")
    query, key, value = _autocast(query, key, value)
    if backward is None:
        _guard_gradients((query, key, value, out, lse))
    elif out is not None or lse is not None:
        raise NotImplementedError("out and lse cannot be given with backward=\"exact\"")
    (query_starts, on_gpu_queries), (key_starts, on_gpu_keys), (key_lengths, on_gpu_lengths) = map(_lengths, (query_starts, key_starts, key_lengths))
    if backward and any(x is not None for x in (key_lengths, on_gpu_queries, on_gpu_keys, on_gpu_lengths)):
        raise NotImplementedError("key_lengths, and starts on a GPU, cannot be given with backward=\"exact\": give query_starts and key_starts in CPU "
                                  "memory")
    text = method if isinstance(method, str) else "recipe:" + ",".join([str(number + 0) for number in method._numbers()])
    sides = None if window is None else [-1 if side is None else side for side in window]
    arguments = (query, key, value, text, layout, bool(causal), sides, scale, bool(return_lse) or lse is not None, query_starts,
                 key_starts, _positions(query_positions), _positions(key_positions), kernel, threads, backward or "none", key_lengths,
                 on_gpu_queries, on_gpu_keys, on_gpu_lengths, max_queries, max_keys)
    if out is None and lse is None:
        result, result_lse = _ops.forward(*arguments)
    else:
        result = torch.empty_like(query) if out is None else out
        result_lse = lse if lse is not None else _new_lse(query, lse_shape(query, layout)) if return_lse else None
        _ops.forward_out(*arguments, result, result_lse)
    return (result, result_lse) if return_lse else result


def _autocast(*tensors):
    """As scaled_dot_product_attention() casts its operands."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _routes(core):
    def route(query, key, value, *rest):
        """What must not go straight to `core`. The arguments are those of core.attention()."""
        tensors = [x for x in (query, key, value, *rest[6:8]) if isinstance(x, torch.Tensor)]
        _guard_gradients((query, key, value, *rest[6:8]))
        if all(isinstance(x, torch.Tensor) for x in (query, key, value)):
            query, key, value = _autocast(query, key, value)
        plain = all(type(x) in (torch.Tensor, torch.nn.Parameter) and x.layout == torch.strided and x.device.type != "meta" for x in tensors)
        if plain and not torch._C._len_torch_dispatch_stack() and not torch._C._is_tracing() and not _in_transform():
            return core.run(query, key, value, *rest)
        return _dispatched_or_named(query, key, value, *rest)

    return route


def _in_transform():
    return torch._C._functorch.peek_interpreter_stack() is not None


def _dispatched_or_named(query, key, value, *rest):
    try:
        return dispatched(query, key, value, *rest, None)
    except NotImplementedError as error:
        for name, tensor in zip(_NAMES, (query, key, value)):
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
                raise NotImplementedError(f"{name} is a {type(tensor).__name__} with layout {tensor.layout}, which attention() cannot read: give a "
                                          "plain strided tensor (to_local() of a DTensor, to_dense() of a sparse one)") from error
        raise


def use(core):
    """Tells a copy of `_core` what to ask PyTorch."""
    capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None) or (lambda: False)
    checks = torch._C._len_torch_dispatch_stack, torch._C._is_tracing, torch._C._is_any_autocast_enabled
    core.use_torch(checks, torch.is_grad_enabled, torch.Tensor.is_neg, torch.empty_like, _new_lse, _new_workspace, capturing, _routes(core))
    if core is _core:
        _attention._is_compiling = torch.compiler.is_dynamo_compiling
