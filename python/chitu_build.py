# SPDX-License-Identifier: Apache-2.0
"""The build backend: scikit-build-core, and a setting for the compiler of the GPU kernels.

    pip install .                   nvcc 13 if it is installed, else no GPU kernels
    pip install . -C cuda=pypi      nvcc from PyPI, for this build alone: no CUDA toolkit is needed
    pip install . -C cuda=off       no GPU kernels"""

import os
import sys
from pathlib import Path

from scikit_build_core import build as _backend
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist  # noqa: F401

_COMPILER = ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl"]
_CHOICES = ("auto", "pypi", "off")


def _choice(settings):
    """(what `cuda` says, the other settings)"""
    if sys.platform == "win32":
        raise SystemExit("chitu-attention has no build for Windows yet; the Windows Subsystem for Linux runs it")
    others = dict(settings or {})
    chosen = others.pop("cuda", "auto")
    if chosen not in _CHOICES:
        raise SystemExit(f"-C cuda={chosen}: it must be one of {', '.join(_CHOICES)}")
    return chosen, others


def _toolkit():
    """Where the packages of _COMPILER lie, with the two links that CMake looks for."""
    from importlib.metadata import files
    nvcc = next(file for file in files("nvidia-cuda-nvcc") if file.name == "nvcc").locate()
    root = Path(nvcc).resolve().parent.parent
    for link, target in ((root / "lib64", "lib"), (root / "lib" / "libcudart.so", "libcudart.so.13")):
        if not link.exists():
            link.symlink_to(target)
    return root


def _prepare(settings):
    chosen, others = _choice(settings)
    if chosen == "pypi":
        root = _toolkit()
        os.environ["CUDACXX"] = str(root / "bin" / "nvcc")
        os.environ["CUDAToolkit_ROOT"] = str(root)
        others["cmake.define.CHITU_CUDA"] = "ON"
        print(f"chitu: the GPU kernels are compiled by {root}/bin/nvcc", flush=True)
    elif chosen == "off":
        others["cmake.define.CHITU_CUDA"] = "OFF"
    return others


def _requires(function, settings):
    chosen, others = _choice(settings)
    return function(others) + ([f"{name}>=13,<14" for name in _COMPILER] if chosen == "pypi" else [])


def get_requires_for_build_wheel(config_settings=None):
    return _requires(_backend.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _requires(_backend.get_requires_for_build_editable, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _backend.build_wheel(wheel_directory, _prepare(config_settings), metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _backend.build_editable(wheel_directory, _prepare(config_settings), metadata_directory)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    return _backend.prepare_metadata_for_build_wheel(metadata_directory, _choice(config_settings)[1])


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    return _backend.prepare_metadata_for_build_editable(metadata_directory, _choice(config_settings)[1])
