# SPDX-License-Identifier: Apache-2.0
"""The library on torch tensors, for the benchmarks here: that of the installed package, or any other build of it.

    pip install .
    cmake -S . -B build-shared -G Ninja -DBUILD_SHARED_LIBS=ON -DCHITU_CLI=OFF -DCHITU_TESTS=OFF && cmake --build build-shared   # another
"""

import re

import chitu_attention
from chitu_attention import _library


class Unsupported(Exception):
    """No kernel takes such a call; the text has the reasons of those for the device of its tensors."""

    def __init__(self, text):
        lines = [line.strip() for line in text.splitlines()[1:] if not line.endswith("is for tensors in CPU memory")]
        reasons = [re.sub(r" \([^)]*\):", ":", line, count=1) for line in lines]  # rows of one kernel may have one reason
        super().__init__("; ".join(dict.fromkeys(reasons)) or text)


class Library:
    def __init__(self, path=""):
        """path: of a libchitu.so; "" for the installed package's."""
        self.core = _library.load(path) if path else chitu_attention._core

    def version(self):
        return self.core.version()

    def methods(self):
        return [name for name, *_ in self.core.methods()]

    def attention(self, query, key, value, out, method, lse=None, causal=False, threads=0):
        """A function that makes this call, in the current stream, whenever it is called.

        query, key, value, out: [batch, heads, tokens, dim]; lse: None, or float32 [batch, heads, queries]."""
        arguments = (query, key, value, method, "bhsd", causal, None, None, False, out, lse, None, None, None, None, None, threads, None, None, None, None)

        def call():
            try:
                return self.core.attention(*arguments)
            except NotImplementedError as error:
                raise Unsupported(str(error)) from None

        return call
