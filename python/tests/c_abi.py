# SPDX-License-Identifier: Apache-2.0
"""chitu_attention() of the installed library through ctypes: what the package's results must equal bit for bit."""

import ctypes
import os

import chitu_attention

_library = ctypes.CDLL(os.path.join(os.path.dirname(chitu_attention.__file__), "libchitu.so"))
_library.chitu_last_error.restype = ctypes.c_char_p


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("shape", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4)]


class Options(ctypes.Structure):
    """The first fields of chitu_options; the library takes the rest as their defaults."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("method", ctypes.c_char_p), ("kernel", ctypes.c_char_p), ("has_scale", ctypes.c_int32),
                ("scale", ctypes.c_float), ("window_left", ctypes.c_int64), ("window_right", ctypes.c_int64)]


def _view(x):
    """Of a tensor of PyTorch."""
    dtype = {"torch.float32": 0, "torch.float16": 1, "torch.bfloat16": 2}[str(x.dtype)]
    four = ctypes.c_int64 * 4
    return Tensor(x.data_ptr(), dtype, int(x.is_cuda), x.device.index or 0, four(*x.shape), four(*x.stride()))


def attention(query, key, value, out, lse, method, window=(-1, -1), scale=None):
    """All [batch, heads, tokens, dim]; lse [batch, heads, queries]."""
    options = Options(ctypes.sizeof(Options), method.encode(), None, scale is not None, scale or 0.0, *window)
    views = [_view(x) for x in (query, key, value, out, lse.unsqueeze(-1))]
    status = _library.chitu_attention(*map(ctypes.byref, views), ctypes.byref(options))
    if status:
        raise RuntimeError(_library.chitu_last_error().decode())
