# SPDX-License-Identifier: Apache-2.0
"""python -m pytest python/tests: the tests of an installed chitu_attention; -m gpu: those on a CUDA GPU."""

import importlib.util
import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def has_gpu():
    if importlib.util.find_spec("torch") is None:
        return False
    import torch
    return torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    if not any("gpu" in item.keywords for item in items) or has_gpu():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA GPU"))
