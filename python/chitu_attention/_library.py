# SPDX-License-Identifier: Apache-2.0
"""The module `_core`, and which libchitu it calls."""

import os

from . import _core
from ._hooks import Hooks

FOLDER = os.path.dirname(os.path.abspath(__file__))


def load(path):
    """A further copy of the module `_core` that calls the libchitu at `path`: to compare two of them."""
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location(_core.__name__, _core.__file__)
    core = module_from_spec(spec)
    spec.loader.exec_module(core)
    core.open(os.path.abspath(path), Hooks(core))
    return core


def _threads():
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 2  # unknown


def _follow_forks(core):
    """OpenMP's threads do not survive fork(), but it would wait for them: a child of a process with threads computes with one."""
    before = [1]

    def count():
        before[0] = _threads()

    def in_child():
        if before[0] > 1:
            core.set_forked()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=count, after_in_child=in_child)


_core.open(os.path.join(FOLDER, "libchitu.so"), Hooks(_core))
_follow_forks(_core)
