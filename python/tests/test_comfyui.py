# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.comfyui by ComfyUI's contract, which no package on PyPI has: how its models call attention, and an override."""

import pytest

torch = pytest.importorskip("torch")

import chitu_attention as ca  # noqa: E402
from chitu_attention import comfyui  # noqa: E402


def native(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """What a function of ComfyUI's computes."""
    dim = q.shape[-1] if skip_reshape else q.shape[-1] // heads
    if not skip_reshape:
        q, k, v = (x.reshape(x.shape[0], x.shape[1], -1, dim).transpose(1, 2) for x in (q, k, v))
    if mask is not None and mask.ndim == 2:
        mask = mask[None, None]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kwargs.get("scale"),
                                                           enable_gqa=kwargs.get("enable_gqa", False))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def called(override, *args, **kwargs):
    """As ComfyUI's models do, whose attention hands the call over when there is an override."""
    options = {"optimized_attention_override": override}
    return options["optimized_attention_override"](native, *args, transformer_options=options, _inside_attn_wrapper=True, **kwargs)


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FLAT = [make(2, tokens, 64, seed=seed) for seed, tokens in enumerate((24, 30, 30))]
SPLIT = [x.reshape(2, -1, 4, 16).transpose(1, 2) for x in FLAT]
GROUPED = [FLAT[0], FLAT[1][..., :32], FLAT[2][..., :32]]
CASES = {
    "flat": (FLAT, {}), "heads": (SPLIT, {"skip_reshape": True}), "heads out": (FLAT, {"skip_output_reshape": True}),
    "heads in and out": (SPLIT, {"skip_reshape": True, "skip_output_reshape": True}), "scale": (FLAT, {"scale": 0.4}),
    "grouped": (GROUPED, {"enable_gqa": True}), "low precision": (FLAT, {"low_precision_attention": True}),
    "precision": (FLAT, {"attn_precision": torch.float32}), "preferred": (FLAT, {"preferred_attention": None}),
    "grouped heads": ([SPLIT[0], SPLIT[1][:, :2], SPLIT[2][:, :2]], {"enable_gqa": True, "skip_reshape": True}),
}
TO_COMFYUI = {
    "mask is given": (FLAT, {"mask": make(24, 30)}), "low_precision_attention is False": (FLAT, {"low_precision_attention": False}),
    "bias is given, which is not known": (FLAT, {"bias": None}), "query has dtype torch.float64": ([x.double() for x in FLAT], {}),
    "query requires a gradient (backward=\"exact\" would give one)": ([FLAT[0].clone().requires_grad_(), *FLAT[1:]], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_honoured(name):
    tensors, given = CASES[name]
    exact, chitu = comfyui.Override("exact", strict=True), comfyui.Override(strict=True)
    wanted = native(*tensors, 4, **given)
    got = called(exact, *tensors, 4, **given)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    quantised = called(chitu, *tensors, 4, **given)
    assert (quantised - wanted).abs().sum() / wanted.abs().sum() < 0.05 and not torch.equal(quantised, got)
    assert exact.report.chitu == chitu.report.chitu == 1


@pytest.mark.parametrize("reason", TO_COMFYUI)
def test_counted(reason):
    tensors, given = TO_COMFYUI[reason]
    override = comfyui.Override()
    assert torch.equal(called(override, *tensors, 4, **given), native(*tensors, 4, **given))
    assert override.report.chitu == 0 and override.report.torch == {reason: 1}
    with pytest.raises(NotImplementedError, match=reason.split(" (")[0]):
        called(comfyui.Override(strict=True), *tensors, 4, **given)


def test_exact_is_no_low_precision():
    override = comfyui.Override("exact", strict=True)
    called(override, *FLAT, 4, low_precision_attention=False)
    assert override.report.chitu == 1


class Patcher:
    def __init__(self, model_options):
        self.model_options = model_options

    def clone(self):
        return Patcher(dict(self.model_options))


def test_node():
    node = comfyui.NODE_CLASS_MAPPINGS["ChituAttention"]()
    kinds = node.INPUT_TYPES()["required"]
    assert kinds["model"] == ("MODEL",) and list(kinds["method"][0]) == list(ca.methods())
    model = Patcher({"transformer_options": {"patches": 1}, "other": 2})
    result, = getattr(node, node.FUNCTION)(model, "exact")
    override = result.model_options["transformer_options"]["optimized_attention_override"]
    assert model.model_options == {"transformer_options": {"patches": 1}, "other": 2} and result.model_options["other"] == 2
    called(override, *FLAT, 4)
    assert override.report.chitu == 1
    again = comfyui.patched(result, "sage2")
    assert again.model_options["transformer_options"]["optimized_attention_override"] is not override
    with pytest.raises(ValueError, match="optimized_attention_override"):
        comfyui.patched(Patcher({"transformer_options": {"optimized_attention_override": native}}))
    with pytest.raises(ValueError, match="method is 'exakt'"):
        comfyui.patched(model, "exakt")
    assert isinstance(comfyui.patched(Patcher({})), Patcher)
