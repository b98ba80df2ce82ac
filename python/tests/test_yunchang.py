# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.yunchang, on two processes with gloo."""

import pytest

torch = pytest.importorskip("torch")
yunchang = pytest.importorskip("yunchang")

import chitu_attention as ca  # noqa: E402
import chitu_attention.yunchang  # noqa: E402, F401
import ranks  # noqa: E402
from yunchang.kernels import AttnType  # noqa: E402

pytestmark = pytest.mark.slow

HEAD = """
    import chitu_attention as ca, chitu_attention.yunchang, yunchang
    from yunchang import EXTRACT_FUNC_DICT, LongContextAttention, UlyssesAttention, set_seq_parallel_pg
    from yunchang.globals import PROCESS_GROUP

    registered = ca.yunchang.register(method="exact", backward="exact")
    ca.yunchang.register("chitu-int8")
    q, k, v = (torch.randn(2, 64, 4, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def part(x, ring, degrees):
        return EXTRACT_FUNC_DICT[ring](x, rank, world_size=2, rd=degrees[1], ud=degrees[0]).clone()

    def refused(word, call):
        try:
            call()
        except (NotImplementedError, ValueError) as error:
            assert word in str(error), error
        else:
            raise AssertionError(word)
"""
RINGS = HEAD + """
    for degrees in ((1, 2), (2, 1)):
        set_seq_parallel_pg(*degrees, rank, 2)
        for ring, causals in (("basic", (False, True)), ("zigzag", (True,)), ("strip", (True,))):
            for causal in causals:
                wanted = part(ca.attention(q, k, v, layout="bshd", method="exact", causal=causal, scale=0.3), ring, degrees)
                qkv = [part(x, ring, degrees) for x in (q, k, v)]
                for name, bound in (("chitu", 1e-5), ("chitu-int8", 0.05)):
                    layer = LongContextAttention(ring_impl_type=ring, attn_type=name)
                    with torch.no_grad():
                        got = layer(*qkv, causal=causal, softmax_scale=0.3)
                    got = got[0] if isinstance(got, tuple) else got
                    error = (got - wanted).abs().max() if name == "chitu" else (got - wanted).abs().sum() / wanted.abs().sum()
                    assert error < bound, (degrees, ring, causal, name, error)
    # A refusal leaves a ring's messages behind, so these are rings of one process.
    layer = LongContextAttention(ring_impl_type="basic", attn_type="chitu")
    qkv = [part(x, "basic", degrees) for x in (q, k, v)]
    for word, given in (("window_size", {"window_size": (8, 0)}), ("softcap", {"softcap": 30.0}), ("dropout_p", {"dropout_p": 0.1})):
        refused(word, lambda: layer(*qkv, softmax_scale=0.3, **given))
    for ring in ("basic", "zigzag", "strip"):
        layer = LongContextAttention(ring_impl_type=ring, attn_type="chitu")
        out = layer(qkv[0].clone().requires_grad_(), *qkv[1:], causal=True, softmax_scale=0.3)
        refused("a ring has no gradients", lambda: out.sum().backward())
    assert registered.report.chitu and not registered.report.torch
"""
ULYSSES = HEAD + """
    set_seq_parallel_pg(2, 1, rank, 2)
    layer = UlyssesAttention(PROCESS_GROUP.ULYSSES_PG, attn_type="chitu")
    for options in ({}, {"causal": True}, {"window_size": (5, 2)}):
        more = {"causal": options.get("causal", False), "window": options.get("window_size"), "scale": 0.3}
        x = q.clone().requires_grad_()
        whole = ca.attention(x, k, v, layout="bshd", method="exact", backward="exact", **more)
        gradient, = torch.autograd.grad(whole.square().sum(), x)
        parts = [y[:, 32 * rank:32 * rank + 32].clone().requires_grad_() for y in (q, k, v)]
        got = layer(*parts, softmax_scale=0.3, **options)
        torch.testing.assert_close(got, whole[:, 32 * rank:32 * rank + 32], rtol=0, atol=1e-5)
        got.square().sum().backward()
        torch.testing.assert_close(parts[0].grad, gradient[:, 32 * rank:32 * rank + 32], rtol=1e-3, atol=1e-4)
    refused("softcap", lambda: layer(*parts, softcap=30.0))
    refused("return_attn_probs", lambda: layer(*parts, return_attn_probs=True))
    layer = UlyssesAttention(PROCESS_GROUP.ULYSSES_PG, attn_type="chitu-int8")
    refused("requires a gradient", lambda: layer(*parts))
"""


# The original, with blocks computed exactly, against the class that takes its place.
ORIGINAL = """
    import chitu_attention as ca, chitu_attention.yunchang, yunchang
    from chitu_attention.yunchang import LongContextAttention
    from yunchang import EXTRACT_FUNC_DICT, set_seq_parallel_pg
    from yunchang.kernels import AttnType

    torch.set_grad_enabled(False)
    size = dist.get_world_size()
    ca.yunchang.register("exact-block", method="exact")  # for the rings of the original; its Ulysses and schedules are its own
    q, k, v = (torch.randn(2, 32 * size, 4, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    for ulysses in [u for u in (1, 2, 4) if size % u == 0]:
        ring = size // ulysses
        for low in (True, False):
            set_seq_parallel_pg(ulysses, ring, rank, size, use_ulysses_low=low)
            for name, causals in (("basic", (False, True)), ("zigzag", (False, True)), ("strip", (True,))):
                if not low and name != "zigzag" and 1 < ring < size:
                    continue  # the original's extraction then gives ranks other tokens than its schedule takes them for
                qkv = [EXTRACT_FUNC_DICT[name](x, rank, world_size=size, rd=ring, ud=ulysses).contiguous() for x in (q, k, v)]
                for causal in causals:
                    if name == "zigzag" and not causal:
                        continue  # the original has an assertion
                    theirs = yunchang.LongContextAttention(ring_impl_type=name, attn_type="exact-block")(*qkv, causal=causal, softmax_scale=0.3)
                    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
                    for method, bound in (("exact", 1e-5), ("chitu", 0.05)):
                        ours = LongContextAttention(2, 1, name, attn_type=AttnType.FA, method=method)(*qkv, causal=causal, softmax_scale=0.3)
                        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
                        error = (ours - theirs).abs().sum() / theirs.abs().sum()
                        assert error < bound, (ulysses, low, name, causal, method, error)
                if name != "zigzag" or ulysses > 1:
                    continue
                ours = LongContextAttention(ring_impl_type=name, method="exact")(*qkv, window_size=(9, 4))  # which the original's rings lack
                wanted = ca.attention(q, k, v, layout="bshd", method="exact", window=(9, 4))
                torch.testing.assert_close(ours, EXTRACT_FUNC_DICT[name](wanted, rank, world_size=size, rd=ring, ud=ulysses), rtol=0, atol=1e-5)
    layer = LongContextAttention(attn_type=AttnType.TORCH_MATH)
    for word, given in (("softcap", {"softcap": 30.0}), ("dropout_p", {"dropout_p": 0.1}), ("return_attn_probs", {"return_attn_probs": True})):
        try:
            layer(*qkv, **given)
        except NotImplementedError as error:
            assert word in str(error), error
        else:
            raise AssertionError(word)
"""


@pytest.mark.parametrize("size", [2, 4])
def test_long_context_attention_is_that_of_the_original(size, tmp_path):
    ranks.run(ORIGINAL, tmp_path, size)


def test_rings(tmp_path):
    ranks.run(RINGS, tmp_path)


def test_ulysses(tmp_path):
    ranks.run(ULYSSES, tmp_path)


def test_registration():
    select = yunchang.kernels.select_flash_attn_impl
    with ca.yunchang.register() as chitu:
        patched = yunchang.kernels.select_flash_attn_impl
        assert yunchang.ring.zigzag_ring_flash_attn.select_flash_attn_impl is patched is yunchang.ring.stripe_flash_attn.select_flash_attn_impl
        assert patched(AttnType.TORCH_MATH, stage="fwd-only").func is select(AttnType.TORCH_MATH, stage="fwd-only").func
        with pytest.raises(ValueError, match="which is an attn_type already"):
            ca.yunchang.register()
        with pytest.raises(ValueError, match="attn_processor is given"):
            patched("chitu", "fwd-only", lambda *args: None)
        with pytest.raises(ValueError, match="Unknown flash attention implementation"):
            patched("chitu-2")
        q = torch.randn(1, 8, 2, 16)
        block = patched("chitu", stage="fwd-only")
        out, lse = block(q, q, q, 0.0, 0.25, causal=True, window_size=(-1, -1), softcap=None, alibi_slopes=None, return_softmax=False)
        assert out.shape == q.shape and lse.shape == (1, 2, 8) and lse.dtype == torch.float32 and chitu.report.chitu == 1
        with pytest.raises(ValueError, match="causal is given for 8 queries and 4 keys"):
            block(q, q[:, :4], q[:, :4], causal=True)
        with pytest.raises(NotImplementedError, match="alibi_slopes is a Tensor"):  # yunchang itself has an assertion
            block(q, q, q, alibi_slopes=torch.ones(2))
        second = ca.yunchang.register("second")
        with pytest.raises(RuntimeError, match="restore.. that first"):
            chitu._undo()
        second.restore()
    assert yunchang.kernels.select_flash_attn_impl is select is yunchang.ulysses.attn_layer.select_flash_attn_impl
    with pytest.raises(ValueError, match="'fa', which is an attn_type already"):
        ca.yunchang.register("fa")
    with pytest.raises(ValueError, match="method is 'torch'"):
        ca.yunchang.register(method="torch")
