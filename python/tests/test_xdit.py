# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.xdit by xDiT's contract: importing the whole of xfuser needs a GPU, so only its attention backends are imported here."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")
_spec = importlib.util.find_spec("xfuser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(_spec is None, reason="there is no xfuser")]

HEAD = """
    import importlib.util, sys
    from types import ModuleType
    from unittest.mock import MagicMock

    import torch._dynamo  # which must not see the triton that is made up here

    package = ModuleType("xfuser")
    package.__path__ = list(importlib.util.find_spec("xfuser").submodule_search_locations)
    sys.modules["xfuser"] = package
    missing = [name for name in ("einops", "triton") if importlib.util.find_spec(name) is None]
    for name in (*missing, *(["triton.language"] if "triton" in missing else [])):
        sys.modules[name] = MagicMock(__path__=[], __spec__=importlib.util.spec_from_loader(name, None))
    import xfuser.envs
    xfuser.envs.get_device_version = lambda: "13.0"

    import torch
    import chitu_attention as ca, chitu_attention.xdit
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType

    q, k, v = (torch.randn(2, 4, tokens, 16, generator=torch.Generator().manual_seed(tokens)) for tokens in (24, 30, 30))
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def refused(word, call, kind=NotImplementedError):
        try:
            call()
        except kind as error:
            assert word in str(error), error
        else:
            raise AssertionError(word)
"""
CONTRACT = HEAD + """
    members, registry = list(AttentionBackendType), dict(ATTENTION_FUNCTION_REGISTRY)
    with ca.xdit.register(method="exact") as registered, ca.xdit.register("CHITU_SAGE2", "sage2"):
        member = AttentionBackendType["CHITU"]
        assert isinstance(member, AttentionBackendType) and member in list(AttentionBackendType) and member.name == "CHITU"
        assert AttentionBackendType(member.value) is member and AttentionBackendType["CHITU_SAGE2"] is not member
        call = ATTENTION_FUNCTION_REGISTRY[member]
        for causal, tokens in ((False, 30), (True, 24), (True, 30)):
            out, lse = call(q, k[:, :, :tokens], v[:, :, :tokens], dropout_p=0.0, is_causal=causal)
            torch.testing.assert_close(out, sdpa(q, k[:, :, :tokens], v[:, :, :tokens], is_causal=causal), rtol=0, atol=1e-5)
            assert lse.shape == (2, 4, 24) and lse.dtype == torch.float32
        assert registered.report.chitu == 3

        # Padded keys, as xDiT packs them.
        mask = torch.ones(2, 30, dtype=torch.bool)
        mask[0, 21:] = False
        mask[1, :4] = False
        kwargs = {"indices_k": mask.flatten().nonzero().flatten(), "cu_seqlens_k": torch.tensor([0, 21, 47], dtype=torch.int32), "max_seqlen_k": 26}
        out, lse = call(q, k, v, dropout_p=0.0, is_causal=False, attention_kwargs=kwargs)
        torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=mask[:, None, None]), rtol=0, atol=1e-5)
        first = ca.attention(q[:1], k[:1, :, :21], v[:1, :, :21], method="exact", return_lse=True)
        assert torch.equal(lse[:1], first[1]) and lse.shape == (2, 4, 24)

        refused("attn_mask is a Tensor", lambda: call(q, k, v, 0.0, False, {"attn_mask": mask}))
        refused("dropout_p is 0.1", lambda: call(q, k, v, dropout_p=0.1, is_causal=False))
        refused("is_causal is True", lambda: call(q, k, v, 0.0, True, kwargs))
        refused("requires a gradient", lambda: call(q.clone().requires_grad_(), k, v, 0.0, False))
        quantised, _ = ATTENTION_FUNCTION_REGISTRY[AttentionBackendType["CHITU_SAGE2"]](q, k, v, 0.0, False)
        assert (quantised - sdpa(q, k, v)).abs().max() < 0.2 and not torch.equal(quantised, sdpa(q, k, v))
        refused("which is a backend already", ca.xdit.register, ValueError)
    assert list(AttentionBackendType) == members and ATTENTION_FUNCTION_REGISTRY == registry
    refused("name is 'chitu'", lambda: ca.xdit.register("chitu"), ValueError)
    refused("method is 'torch'", lambda: ca.xdit.register(method="torch"), ValueError)
    refused("backward is 'exact'", lambda: ca.xdit.register(backward="exact"))
"""
SHIM = """
    import chitu_attention.shim
    chitu_attention.shim.install("sageattention", method="exact")
""" + HEAD + """
    out, lse = ATTENTION_FUNCTION_REGISTRY[AttentionBackendType.SAGE](q, k, v, dropout_p=0.0, is_causal=False)
    torch.testing.assert_close(out, sdpa(q, k, v), rtol=0, atol=1e-5)
    assert lse.shape == (2, 4, 24)
"""


@pytest.mark.parametrize("code", [CONTRACT, SHIM], ids=["register", "shim"])
def test_contract(code):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
