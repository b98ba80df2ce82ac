# SPDX-License-Identifier: Apache-2.0
"""Python imports this file when it starts, where chitu_attention.shim has put its folder on PYTHONPATH. It serves sageattention, and then
runs the sitecustomize that it stands before, if there is one."""

import os
import sys


def _serve():
    try:
        from chitu_attention import shim
        shim._install_in_child()
    except (ImportError, RuntimeError) as error:  # another Python, or one with the real package: its program may need neither
        print(f"chitu_attention.shim: not in {sys.executable}: {error}", file=sys.stderr)


def _run_next():
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != here])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)


_serve()
_run_next()
