# SPDX-License-Identifier: Apache-2.0
"""What this installation can do here."""

import os
import sys

_OLDEST_DRIVER = 13000  # of CUDA 13, which driver 580 was the first to have


def _driver():
    """(CUDA version that the driver has, text), or (0, why there is none)."""
    import ctypes
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no NVIDIA driver (libcuda.so.1 is not found)"
    version, status = ctypes.c_int(), cuda.cuInit(0)
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return 0, "an NVIDIA driver that does not tell its version"
    text = f"NVIDIA driver with CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    try:
        with open("/proc/driver/nvidia/version", encoding="ascii", errors="replace") as file:
            text += f" ({file.readline().strip().partition(':')[2].strip()})"
    except OSError:
        pass
    return version.value, text if status == 0 else f"{text}; cuInit() failed with {status}"


def _thread_pools():
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return sorted({line.split()[-1] for line in file if "libgomp" in line or "libomp" in line})
    except OSError:
        return []


def doctor():
    """A text about this installation: versions, kernels that this machine can run, the GPU's driver, and what to do about what is amiss."""
    from . import _attention, _library
    lines = [f"chitu-attention {_attention.version()} in {_library.FOLDER}", f"Python {sys.version.split()[0]}"]
    for name in ("torch", "numpy"):
        module = sys.modules.get(name)
        lines.append(f"{name} {module.__version__}" if module else f"{name}: not imported")
    rows = _attention.kernels()
    for kernel in rows:
        lines.append(f"{kernel.name}: {'ready' if kernel.available else 'not on this machine'} ({kernel.scores} scores, {kernel.weights} weights)")
    number, text = _driver()
    lines.append(text)
    if not any(kernel.device == "cuda" for kernel in rows):
        lines.append("no GPU kernels: this package was built without nvcc 13")
    elif 0 < number < _OLDEST_DRIVER:
        lines.append(f"the GPU kernels need driver 580 or newer (CUDA 13); this one has CUDA {number // 1000}.{number % 1000 // 10}. "
                     "The CPU kernels work")
    pools = _thread_pools()
    lines.append("OpenMP: " + (", ".join(pools) or "unknown"))
    if len(pools) > 1:
        lines.append("more than one OpenMP is loaded: their threads will compete; import torch before other packages that bring their own")
    if not os.path.exists(os.path.join(_library.FOLDER, "chitu")):
        lines.append("the chitu command is not in this installation")
    return "\n".join(lines)
