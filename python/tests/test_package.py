# SPDX-License-Identifier: Apache-2.0
"""The installation: what importing costs and needs, the command, threads and forks."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import chitu_attention as ca

FOLDER = os.path.dirname(ca.__file__)


def python(code, *arguments, **environment):
    done = subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    code = ("import time; t = time.perf_counter(); import sys, chitu_attention; t = time.perf_counter() - t; "
            "print(t, sorted({'torch', 'numpy', 'ctypes', 'dataclasses', 'typing'} & set(sys.modules)))")
    times = []
    for _ in range(3):
        seconds, modules = python(code, "-I").split(" ", 1)
        assert modules == "[]"
        times.append(float(seconds))
    assert min(times) < 0.1


def test_buffers_need_no_numpy():
    code = """
import array, sys, chitu_attention
x = memoryview(array.array("f", range(64))).cast("B").cast("f", (1, 2, 4, 8))
out = memoryview(array.array("f", bytes(256))).cast("B").cast("f", (1, 2, 4, 8))
chitu_attention.attention(x, x, x, out=out, method="exact", scale=0.0)
assert out[0, 0, 0, 0] == sum(range(0, 32, 8)) / 4 and out[0, 1, 3, 7] == (39 + 47 + 55 + 63) / 4
try:
    chitu_attention.attention(x, x, x)
except TypeError as error:
    print(error)
assert "numpy" not in sys.modules
"""
    assert "out must be given" in python(code, "-S", PYTHONPATH=os.path.dirname(FOLDER))


def test_names():
    assert set(ca.__all__) <= set(dir(ca)) and re.fullmatch(r"\d+\.\d+\.\d+", ca.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ca.nothing
    from importlib.metadata import metadata
    assert metadata("chitu-attention")["Version"] == ca.__version__
    assert metadata("chitu-attention")["Requires-Python"] == ">=3.11"
    assert not metadata("chitu-attention").get_all("Requires-Dist", []) or all(
        "extra ==" in need for need in metadata("chitu-attention").get_all("Requires-Dist"))


def test_stubs_name_what_there_is():
    import ast
    import inspect
    with open(os.path.join(FOLDER, "__init__.pyi"), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    imported = {name.asname for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(ca.__all__) <= set(functions) | classes | imported
    for name in ("explain", "kernels", "merge", "methods", "quantize", "quantize_keys_and_values", "doctor"):
        stub = functions[name]
        assert [a.arg for a in (*stub.args, *filter(None, [stub.vararg]), *stub.kwonlyargs)] == list(
            inspect.signature(getattr(ca, name)).parameters), name
    assert {a.arg for a in functions["attention"].args + functions["attention"].kwonlyargs} == set(inspect.signature(ca.attention).parameters)


def test_command():
    command = [sys.executable, "-m", "chitu_attention"]
    if not os.path.exists(os.path.join(FOLDER, "chitu")):
        pytest.skip("the installation was built without the command")
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert done.stdout == f"chitu {ca.__version__}\n"
    done = subprocess.run([*command, "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no command 'fly'" in done.stderr
    done = subprocess.run([*command, "methods"], capture_output=True, text=True)
    assert all(name in done.stdout for name in ca.methods())


def test_doctor():
    text = ca.doctor()
    assert FOLDER in text and "cpu.portable: ready" in text
    assert "driver" in text.lower()


def test_doctor_names_an_old_driver(monkeypatch):
    from chitu_attention import _attention, _doctor
    monkeypatch.setattr(_doctor, "_driver", lambda: (12080, "NVIDIA driver with CUDA 12.8"))
    monkeypatch.setattr(_attention, "kernels", lambda: [ca.Kernel("cuda.sm90", "int8", "int8", False, "cuda")])
    assert "need driver 580 or newer (CUDA 13); this one has CUDA 12.8. The CPU kernels work" in ca.doctor()


def test_command_needs_only_what_the_wheel_has():
    command = os.path.join(FOLDER, "chitu")
    if not os.path.exists(command):
        pytest.skip("the installation was built without the command")
    needed = subprocess.run(["ldd", command], capture_output=True, text=True).stdout
    assert "libchitu.so" in needed and "libfmt" not in needed and "not found" not in needed


@pytest.mark.parametrize("first, second", [("torch", "chitu_attention"), ("chitu_attention", "torch")])
def test_one_pool_of_threads(first, second):
    pytest.importorskip("torch")
    code = f"""
import {first}, {second}
import torch, chitu_attention
x = torch.randn(1, 2, 64, 32)
chitu_attention.attention(x, x, x, threads=2)
torch.nn.functional.scaled_dot_product_attention(x, x, x)
print(len({{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}}))
"""
    assert python(code) == "1"


def test_fork():
    pytest.importorskip("numpy")
    code = """
import os, warnings, numpy, chitu_attention as ca
warnings.simplefilter("ignore")
x = numpy.random.default_rng(0).standard_normal((1, 4, 500, 64), dtype=numpy.float32)
wanted = ca.attention(x, x, x, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if all((ca.attention(x, x, x, threads=n) == wanted).all() for n in (0, 1, 2)) else 1)
status = os.waitpid(child, 0)[1]
print(status, (ca.attention(x, x, x, threads=2) == wanted).all())
"""
    assert python(code) == "0 True"


def test_fork_after_pytorch_alone():
    """Its threads are in the same pool."""
    pytest.importorskip("torch")
    code = """
import os, warnings, torch, chitu_attention as ca
warnings.simplefilter("ignore")
x = torch.randn(1, 4, 500, 64)
torch.nn.functional.scaled_dot_product_attention(x, x, x)
child = os.fork()
if child == 0:
    ca.attention(x, x, x, threads=2)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert python(code) == "0"


def test_copies_of_the_module():
    """A second copy of the module, with a library of its own."""
    numpy = pytest.importorskip("numpy")
    from chitu_attention import _library
    core = _library.load(os.path.join(FOLDER, "libchitu.so"))
    x = numpy.random.default_rng(0).standard_normal((1, 2, 30, 32), dtype=numpy.float32)
    rest = ["bhsd", False, None, None, False, None, None, None, None, None, None, None, 0, None, None, None, None]
    assert core is not ca._core and (core.run(x, x, x, "chitu", *rest) == ca.attention(x, x, x)).all()
    with pytest.raises(RuntimeError, match="open already"):
        core.open("libchitu.so", None)
    with pytest.raises(ImportError, match="cannot be loaded"):
        _library.load(os.path.join(FOLDER, "nothing.so"))
    with pytest.raises(TypeError, match="21 arguments are needed"):
        core.run(x)


def test_standard_library_stays_inside():
    """PyTorch's copy of libstdc++ and the wheel's may differ: with unique objects of one in the other, formatting a number crashes."""
    if not shutil.which("nm"):
        pytest.skip("binutils are not installed")
    done = subprocess.run(["nm", "-D", "--defined-only", os.path.join(FOLDER, "libchitu.so")], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "chitu_attention" in symbols
    assert not [s for s in symbols if s.startswith(("_ZNSo", "_ZNSt8ios_base", "_ZNSt6locale"))]
