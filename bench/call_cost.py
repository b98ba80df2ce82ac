# SPDX-License-Identifier: Apache-2.0
"""What a call of attention() from Python costs over the C function: chitu_attention() called in a loop in C, on the same four tensors.

    pip install . torch && python bench/call_cost.py

Both run in turn; minima, in nanoseconds."""

import ctypes
import os
import subprocess
import sys
import tempfile
import timeit

import torch

import chitu_attention

LOOP = r"""
#include <stdint.h>
#include <time.h>
#include <dlfcn.h>
#include "chitu/c.h"
static __typeof__(chitu_attention)* call;
static __typeof__(chitu_options_init)* init;
void open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  call = (__typeof__(call))dlsym(library, "chitu_attention");
  init = (__typeof__(init))dlsym(library, "chitu_options_init");
}
double nanoseconds(const chitu_tensor* t, int count) {
  chitu_options o;
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int i = 0; i < count; ++i) {
    init(&o, sizeof o);
    o.threads = 1;
    o.method = "exact";
    if (call(&t[0], &t[1], &t[2], &t[3], 0, &o) != CHITU_OK) return -1;
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  return ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count;
}
"""


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("shape", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4)]


def c_loop():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folder = tempfile.mkdtemp()
    source, library = os.path.join(folder, "loop.c"), os.path.join(folder, "loop.so")
    with open(source, "w") as file:
        file.write(LOOP)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-D_GNU_SOURCE", "-I" + os.path.join(root, "include"), source, "-o", library], check=True)
    loop = ctypes.CDLL(library)
    loop.nanoseconds.restype = ctypes.c_double
    loop.open_library(os.path.join(os.path.dirname(chitu_attention.__file__), "libchitu.so").encode())
    return loop


def main():
    query, key, value = (torch.randn(1, 1, 1, 32) for _ in range(3))
    out = torch.empty_like(query)
    dense = lambda t: Tensor(t.data_ptr(), 0, 0, 0, (ctypes.c_int64 * 4)(*t.shape), (ctypes.c_int64 * 4)(*t.stride()))
    tensors = (Tensor * 4)(*map(dense, (query, key, value, out)))
    loop = c_loop()
    attention, count = chitu_attention.attention, 3000
    calls = {"out given": lambda: attention(query, key, value, method="exact", out=out, threads=1),
             "allocated": lambda: attention(query, key, value, method="exact", threads=1),
             "empty_like": lambda: torch.empty_like(query), "nothing": lambda: None}
    best = dict.fromkeys(["C", *calls], float("inf"))
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 60):
        best["C"] = min(best["C"], loop.nanoseconds(tensors, count))
        for name, call in calls.items():
            best[name] = min(best[name], timeit.timeit(call, number=count) / count * 1e9)
    print(f"the C function {best['C']:.0f} ns; torch.empty_like() {best['empty_like'] - best['nothing']:.0f}")
    for name in ("out given", "allocated"):
        print(f"over it, {name}: {best[name] - best['nothing'] - best['C']:.0f} ns")


if __name__ == "__main__":
    main()
