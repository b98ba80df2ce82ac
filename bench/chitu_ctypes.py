# SPDX-License-Identifier: Apache-2.0
"""chitu_attention() of a shared library on torch tensors, for the benchmarks here: include/chitu/c.h through ctypes.

    cmake -S . -B build-shared -G Ninja -DBUILD_SHARED_LIBS=ON -DCHITU_CLI=OFF -DCHITU_TESTS=OFF && cmake --build build-shared
"""

import ctypes
import os
import re

import torch

ABI_VERSION = 1  # of include/chitu/c.h, which the structs below repeat
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DEVICES = {"cpu": 0, "cuda": 1}
UNSUPPORTED = 2


class Unsupported(Exception):
    """No kernel takes such a call; the text has the reasons of those for the device of its tensors."""

    def __init__(self, text):
        lines = [line.strip() for line in text.splitlines()[1:] if not line.endswith("is for tensors in CPU memory")]
        reasons = [re.sub(r" \([^)]*\):", ":", line, count=1) for line in lines]  # rows of one kernel may have one reason
        super().__init__("; ".join(dict.fromkeys(reasons)) or text)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("stride", ctypes.c_int64 * 4),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("method", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("has_scale", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        ("has_query_positions", ctypes.c_int32),
        ("has_key_positions", ctypes.c_int32),
        ("query_positions", ctypes.c_int64 * 2),
        ("key_positions", ctypes.c_int64 * 2),
        ("query_starts", ctypes.c_void_p),
        ("key_starts", ctypes.c_void_p),
        ("query_starts_count", ctypes.c_size_t),
        ("key_starts_count", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
    ]


def view(tensor):
    sizes = ctypes.c_int64 * 4
    device = tensor.device
    return Tensor(tensor.data_ptr(), DTYPES[tensor.dtype], DEVICES[device.type], device.index or 0, sizes(*tensor.shape),
                  sizes(*tensor.stride()))


class Library:
    def __init__(self, path):
        self.library = ctypes.CDLL(os.path.abspath(path))
        self.library.chitu_last_error.restype = ctypes.c_char_p
        self.library.chitu_version.restype = ctypes.c_char_p
        self.library.chitu_method_count.restype = ctypes.c_size_t
        self.library.chitu_method_name.restype = ctypes.c_char_p
        self.library.chitu_method_name.argtypes = [ctypes.c_size_t]
        if self.library.chitu_abi_version() != ABI_VERSION:
            raise SystemExit(f"{path} has ABI version {self.library.chitu_abi_version()}, this script {ABI_VERSION}")

    def version(self):
        return self.library.chitu_version().decode()

    def methods(self):
        return [self.library.chitu_method_name(i).decode() for i in range(self.library.chitu_method_count())]

    def check(self, status):
        if status == 0:
            return
        text = self.library.chitu_last_error().decode()
        raise Unsupported(text) if status == UNSUPPORTED else RuntimeError(f"chitu: {text}")

    def attention(self, query, key, value, out, method, lse=None, causal=False, threads=0, stream=None):
        """A function that makes this call whenever it is called. Python prepares the call once, so that its time does not count.

        query, key, value, out: [batch, heads, tokens, dim]; lse: None, or float32 [batch, heads, queries, 1]."""
        options = Options()
        self.check(self.library.chitu_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options))))
        options.method = method.encode()
        options.threads = threads
        options.stream = stream
        if causal:
            options.window_right = 0
        tensors = [query, key, value, out, lse]  # kept alive by the function below, as are the views
        views = [None if t is None else view(t) for t in tensors]
        arguments = [None if v is None else ctypes.byref(v) for v in views] + [ctypes.byref(options)]

        def call():
            self.check(self.library.chitu_attention(*arguments))
            return tensors[3]

        return call
