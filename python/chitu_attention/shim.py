# SPDX-License-Identifier: Apache-2.0
"""Serves programs that import sageattention with chitu_attention.sageattention:

    import chitu_attention.shim
    chitu_attention.shim.install("sageattention")      # before the program's packages are imported

and programs that cannot be edited, with all Python processes that they start:

    python -m chitu_attention.shim [--method NAME] [--force] -- main.py --use-sage-attention
    python -m chitu_attention.shim -- -m package
    python -m chitu_attention.shim -- torchrun --nproc-per-node 2 main.py

No file is written: the name is served in memory, and a real sageattention that is installed is refused unless forced."""

import os
import sys
from importlib import metadata
from importlib.abc import Loader
from importlib.machinery import ModuleSpec

_NAME = "sageattention"
_VERSION = "2.2.0+chitu"  # the version whose functions chitu_attention.sageattention has
_VARIABLE = "CHITU_ATTENTION_SHIM"  # for child processes: "install" or "force", a colon, a method
_CUSTOM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_shim_site")
_READERS = ("diffusers", "yunchang", "xfuser", "comfy")  # they look for sageattention when they are imported


class _Distribution(metadata.Distribution):
    """What importlib.metadata knows of it."""

    _texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: {_VERSION}\nSummary: served by chitu_attention\n",
        "top_level.txt": f"{_NAME}\n",
    }

    def read_text(self, filename):
        return self._texts.get(filename)

    def locate_file(self, path):
        return os.path.join(os.path.dirname(os.path.abspath(__file__)), path)


class _Finder(Loader):
    """On sys.meta_path."""

    def __init__(self, method):
        self.method = method

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, origin=__file__, is_package=True) if name == _NAME else None

    def find_distributions(self, context=metadata.DistributionFinder.Context()):
        if context.name is None or context.name.lower().replace("-", "_") == _NAME:
            yield _Distribution()

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        from . import sageattention
        module.__doc__ = sageattention.__doc__
        module.__version__ = _VERSION
        module.__all__ = list(sageattention.__all__)
        for name in module.__all__:
            setattr(module, name, getattr(sageattention, name))
        if self.method is not None:
            module.sageattn = _with_method(sageattention.sageattn, self.method)


def _with_method(function, method):
    """A copy with another default: programs look at a function's signature."""
    from types import FunctionType
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = {**function.__kwdefaults__, "method": method}
    copy.__module__, copy.__doc__, copy.__qualname__ = function.__module__, function.__doc__, function.__qualname__
    return copy


class Installed:
    """What install() gives: `restore()`, or the end of a `with` block, undoes it."""

    def __init__(self, finder, module):
        self._finder, self._module = finder, module

    def restore(self):
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
            sys.modules.pop(_NAME, None)
            if self._module is not None:
                sys.modules[_NAME] = self._module

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.restore()


def _real():
    """Where the real package is; None if there is none."""
    if _NAME in sys.modules:
        return getattr(sys.modules[_NAME], "__file__", None) or "sys.modules"
    from importlib.util import find_spec
    spec = find_spec(_NAME)
    if spec is not None:
        return spec.origin or "an importer"
    try:
        return f"the distribution {metadata.distribution(_NAME).metadata['Name']}"
    except metadata.PackageNotFoundError:
        return None


def _check(name, method):
    if name != _NAME:
        raise ValueError(f"name is {name!r}; {_NAME!r} is the only one that is served. Instead of flash_attn, import chitu_attention.flash_attn: "
                         "programs that find flash_attn use more of it than its functions")
    if method is not None:
        from . import methods
        if isinstance(method, str) and method not in methods():
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(methods())}")


def install(name="sageattention", *, method=None, force=False):
    """`import sageattention` gives chitu_attention.sageattention from now on, in this process and in those that it forks.

    method: of sageattn(); "chitu" unless given. The named variants keep theirs. force: even if the real package is installed or imported,
    which stays as it is on the disk. What has imported it already keeps it."""
    _check(name, method)
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            raise RuntimeError(f"{name} is served already")
    real = _real()
    if real is not None and not force:
        raise RuntimeError(f"the real {name} is there ({real}); force=True would hide it")
    late = [reader for reader in _READERS if reader in sys.modules]
    if late:
        import warnings
        warnings.warn(f"{late[0]} is imported already and has looked for {name} before: call install() first", RuntimeWarning, stacklevel=2)
    finder = _Finder(method)
    sys.meta_path.insert(0, finder)
    return Installed(finder, sys.modules.pop(name, None))


def _install_in_child():
    """For _shim_site/sitecustomize.py."""
    word, _, method = os.environ.get(_VARIABLE, "").partition(":")
    if word:
        install(method=method or None, force=word == "force")


def _arguments(arguments):
    from argparse import ArgumentParser
    parser = ArgumentParser(prog="python -m chitu_attention.shim", usage="%(prog)s [--method NAME] [--force] -- PROGRAM [ARGUMENT ...]",
                            description="Runs a program that imports sageattention, and the Python processes that it starts, with "
                                        "chitu_attention instead.")
    parser.add_argument("--method", help="of sageattn(); chitu unless given")
    parser.add_argument("--force", action="store_true", help="even if the real sageattention is installed")
    if "--" not in arguments:
        parser.parse_known_args(arguments)
        parser.error("there is no '--' before the program: python -m chitu_attention.shim -- main.py")
    at = arguments.index("--")
    program = arguments[at + 1:]
    options = parser.parse_args(arguments[:at])
    if not program:
        parser.error("there is no program after '--'")
    try:
        _check(_NAME, options.method)
    except ValueError as error:
        parser.error(str(error))
    real = _real()
    if real is not None and not options.force:
        parser.error(f"the real {_NAME} is there ({real}); --force would hide it")
    return options, program


def main(arguments):
    options, program = _arguments(arguments)
    environment = dict(os.environ)
    environment[_VARIABLE] = f"{'force' if options.force else 'install'}:{options.method or ''}"
    environment["PYTHONPATH"] = os.pathsep.join([_CUSTOM, *filter(None, [os.environ.get("PYTHONPATH")])])
    if program[0] == "-m" or program[0].endswith(".py"):
        program = [sys.executable, *program]
    sys.stdout.flush()
    try:
        os.execvpe(program[0], program, environment)
    except OSError as error:
        sys.exit(f"python -m chitu_attention.shim: error: {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
