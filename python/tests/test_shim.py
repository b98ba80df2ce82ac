# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.shim: programs that import sageattention get chitu_attention.sageattention."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

import chitu_attention as ca  # noqa: E402
from chitu_attention import shim  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is imported already:RuntimeWarning"),  # by another test
    pytest.mark.skipif(importlib.util.find_spec("sageattention") is not None, reason="the real sageattention is installed"),
]
TENSORS = [torch.randn(1, 2, 16, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def run(*arguments, code=None, path=None, **environment):
    """The end of a process: (status, what it printed)."""
    command = [sys.executable, "-c", textwrap.dedent(code)] if code else [sys.executable, "-m", "chitu_attention.shim", *arguments]
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    return done.returncode, done.stdout + done.stderr


def test_install():
    with shim.install("sageattention"):
        import sageattention
        assert torch.equal(sageattention.sageattn(*TENSORS), ca.attention(*TENSORS))
        assert importlib.metadata.version("sageattention") == sageattention.__version__ == "2.2.0+chitu"
        assert importlib.util.find_spec("sageattention") is not None
        assert "sageattention" in [found.metadata["Name"] for found in importlib.metadata.distributions()]
        parameters = inspect.signature(sageattention.sageattn).parameters
        assert "attn_mask" not in parameters and list(parameters)[:7] == ["q", "k", "v", "tensor_layout", "is_causal", "sm_scale", "return_lse"]
        for name in ("sageattn_qk_int8_pv_fp8_cuda", "sageattn_qk_int8_pv_fp8_cuda_sm90", "sageattn_qk_int8_pv_fp16_cuda",
                     "sageattn_qk_int8_pv_fp16_triton", "sageattn_varlen"):
            assert callable(getattr(sageattention, name))
        with pytest.raises(ImportError):
            importlib.import_module("sageattention.quant")
        with pytest.raises(RuntimeError, match="served already"):
            shim.install("sageattention")
    assert importlib.util.find_spec("sageattention") is None and "sageattention" not in sys.modules
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("sageattention")


def test_method():
    with shim.install("sageattention", method="exact"):
        from sageattention import sageattn
        assert torch.equal(sageattn(*TENSORS), ca.attention(*TENSORS, method="exact"))
        assert torch.equal(sageattn(*TENSORS, method="fp8"), ca.attention(*TENSORS, method="fp8"))
        assert inspect.signature(sageattn).parameters["method"].default == "exact"
    with pytest.raises(ValueError, match="method is 'exakt'.*sage2"):
        shim.install("sageattention", method="exakt")


def test_other_names():
    for name in ("flash_attn", "xformers"):
        with pytest.raises(ValueError, match=f"name is '{name}'"):
            shim.install(name)


@pytest.fixture
def real(tmp_path):
    """A folder with a package sageattention that is not ours."""
    package = tmp_path / "sageattention"
    package.mkdir()
    (package / "__init__.py").write_text("real = True\n")
    return tmp_path


def test_real_package(real, monkeypatch):
    monkeypatch.syspath_prepend(str(real))
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="the real sageattention is there .*__init__.py"):
        shim.install("sageattention")
    import sageattention
    assert sageattention.real
    with pytest.raises(RuntimeError, match="the real sageattention is there"):
        shim.install("sageattention")
    with shim.install("sageattention", force=True):
        import sageattention as served
        assert served.__version__ == "2.2.0+chitu"
    assert sys.modules.pop("sageattention") is sageattention
    assert (real / "sageattention" / "__init__.py").read_text() == "real = True\n"
    status, text = run("--", "main.py", path=real)
    assert status == 2 and "--force would hide it" in text


def test_late(monkeypatch):
    for name in shim._READERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "yunchang", sys)
    with pytest.warns(RuntimeWarning, match="yunchang is imported already"), shim.install("sageattention"):
        pass


PROGRAM = """
import subprocess, sys
import sageattention
print(__name__, sys.argv[1:], sageattention.__version__, sageattention.sageattn.__kwdefaults__["method"])
if len(sys.argv) < 3:
    subprocess.run([sys.executable, *sys.argv, "child"], check=True)
"""


def test_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    status, text = run("--method", "sage2", "--", str(tmp_path / "program.py"), "--force", path=tmp_path)
    assert status == 0 and text.split("\n")[:2] == ["__main__ ['--force'] 2.2.0+chitu sage2", "__main__ ['--force', 'child'] 2.2.0+chitu sage2"]
    status, text = run("--", "-m", "program", "word", path=tmp_path)
    assert status == 0 and "__main__ ['word'] 2.2.0+chitu chitu" in text


def test_program_keeps_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.before = 7\n")
    (tmp_path / "program.py").write_text("import sageattention; print(before, sageattention.__version__)")
    assert run("--", str(tmp_path / "program.py"), path=tmp_path) == (0, "7 2.2.0+chitu\n")


def test_child_with_the_real_package(real):
    """It keeps what it has, and says so."""
    status, text = run(code="import sageattention; print(sageattention.real)", CHITU_ATTENTION_SHIM="install:",
                       PYTHONPATH=os.pathsep.join([shim._CUSTOM, str(real), os.environ.get("PYTHONPATH", "")]))
    assert status == 0 and "True" in text and "the real sageattention is there" in text and "Traceback" not in text


@pytest.mark.parametrize("arguments, text", [
    (["main.py"], "there is no '--'"), (["--"], "no program after"), (["--method", "fast", "--", "main.py"], "method is 'fast'"),
    (["--", "no-such-program"], "no-such-program: No such file"), (["--fast", "--", "main.py"], "--fast"),
])
def test_bad_arguments(arguments, text):
    status, printed = run(*arguments)
    assert status != 0 and text in printed and "Traceback" not in printed


@pytest.mark.slow
def test_diffusers_finds_it():
    pytest.importorskip("diffusers")
    status, text = run(code="""
        import chitu_attention as ca, chitu_attention.shim, torch
        chitu_attention.shim.install("sageattention", method="exact")
        from diffusers.models import attention_dispatch as dispatch
        assert dispatch._CAN_USE_SAGE_ATTN
        q, k, v = (torch.randn(2, 24, 3, 16) for _ in range(3))
        for causal in (False, True):
            got = dispatch.dispatch_attention_fn(q, k, v, is_causal=causal, scale=0.3, backend=dispatch.AttentionBackendName.SAGE)
            wanted = dispatch.dispatch_attention_fn(q, k, v, is_causal=causal, scale=0.3, backend=dispatch.AttentionBackendName.NATIVE)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    """)
    assert status == 0, text


@pytest.mark.slow
def test_yunchang_finds_it():
    pytest.importorskip("yunchang")
    status, text = run(code="""
        import chitu_attention as ca, chitu_attention.shim, torch
        chitu_attention.shim.install("sageattention", method="exact")
        from yunchang.globals import HAS_SAGE_ATTENTION
        from yunchang.kernels import AttnType, select_flash_attn_impl
        assert HAS_SAGE_ATTENTION
        q, k, v = (torch.randn(2, 24, 3, 16) for _ in range(3))
        wanted = ca.attention(q, k, v, layout="bshd", method="exact", causal=True, scale=0.3, return_lse=True)

        def call(kind):
            return select_flash_attn_impl(kind, stage="fwd-only")(q, k, v, dropout_p=0.0, softmax_scale=0.3, causal=True, window_size=(-1, -1),
                                                                  softcap=0.0, alibi_slopes=None, return_softmax=False)

        got = call(AttnType.SAGE_AUTO)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
        for kind in (AttnType.SAGE_FP16, AttnType.SAGE_FP16_TRITON, AttnType.SAGE_FP8, AttnType.SAGE_FP8_SM90):
            got = call(kind)
            assert (got[0] - wanted[0]).abs().max() < 0.2 and (got[1] - wanted[1]).abs().max() < 0.05, kind
    """)
    assert status == 0, text
