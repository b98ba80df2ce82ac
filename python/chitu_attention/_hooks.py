# SPDX-License-Identifier: Apache-2.0
"""What the module `_core` asks for when it meets something for the first time, or something rare."""

import sys

_TYPESTRS = {"<f4": 0, "<f2": 1}  # numbers of include/chitu/c.h
_DTYPES = ("float32", "float16", "bfloat16")
OTHER, EXCHANGE, TORCH, TORCH_SUBCLASS = range(4)  # Kind of core.h


def _library_of(kind):
    return kind.__module__.partition(".")[0]


class Hooks:
    """For one copy of the module `_core`."""

    def __init__(self, core):
        self.core = core

    def kind_of(self, kind, by_capsule):
        torch = sys.modules.get("torch")
        if torch is None or not issubclass(kind, torch.Tensor):
            return by_capsule
        if by_capsule != EXCHANGE:
            raise NotImplementedError(f"PyTorch {torch.__version__} cannot hand over its tensors without a copy; 2.10 and newer can")
        from . import _torch
        _torch.use(self.core)
        return TORCH if kind in (torch.Tensor, torch.nn.Parameter) else TORCH_SUBCLASS

    def interface(self, array, interface, name):
        """(pointer, read-only, dtype or -1, device, shape, strides in elements or None, stream or None) of an array by NumPy's or
        CuPy's interface."""
        pointer, read_only = interface["data"]
        typestr = interface["typestr"]
        dtype = _TYPESTRS.get(typestr, -1)
        if typestr == "<V2" and getattr(array.dtype, "name", None) == "bfloat16":
            dtype = 2
        strides = interface.get("strides")
        if strides is not None and dtype >= 0:
            size = int(typestr[2:])
            if any(stride % size for stride in strides):
                raise ValueError(f"{name} has elements at no multiple of their size: copy it first")
            strides = tuple(stride // size for stride in strides)
        device = getattr(getattr(array, "device", None), "id", 0)
        stream = interface.get("stream")
        if stream == 1:  # how that interface spells the legacy default stream
            stream = 0
        return pointer, read_only, dtype, device, tuple(interface["shape"]), strides, stream

    def dlpack(self, array, name, stream, written):
        """A capsule, not consumed."""
        if not hasattr(array, "__dlpack__"):
            raise TypeError(f"{name} is a {type(array).__name__}; it must be an array: a tensor of PyTorch, an array of NumPy, CuPy or JAX, or "
                            "anything else with the buffer protocol or DLPack")
        if written and _library_of(type(array)) in ("jax", "jaxlib"):
            raise ValueError(f"{name} is an array of JAX, which cannot be written to: give an array of NumPy or CuPy")
        on_cuda = array.__dlpack_device__()[0] in (2, 13)
        wanted = {"stream": stream or 1} if on_cuda else {}
        try:
            return array.__dlpack__(max_version=(1, 0), **wanted)
        except TypeError:
            return array.__dlpack__(**wanted)

    def empty_like(self, array, dtype):
        """For an output. dtype: -1 for the array's own, else a number; then `array` is a quantised operand."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(array, torch.Tensor):
            return torch.empty_like(array)
        if dtype < 0:
            library = _library_of(type(array))
            if library in ("numpy", "cupy"):
                return sys.modules[library].empty_like(array, subok=False) if library == "numpy" else sys.modules[library].empty_like(array)
        raise TypeError(f"out must be given, an array to write to: nothing like a {type(array).__name__} can be made here")

    def new_lse(self, out, shape):
        """float32 beside `out`."""
        library = _library_of(type(out))
        if library in ("numpy", "cupy", "torch"):
            module = sys.modules[library]
            return module.empty(shape, dtype=module.float32, **({"device": out.device} if library == "torch" else {}))
        raise TypeError(f"lse must be given, an array to write to: nothing like a {type(out).__name__} can be made here")
