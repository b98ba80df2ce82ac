# SPDX-License-Identifier: Apache-2.0
"""scaled_dot_product_attention within sdpa() and replace()."""

import copy
import threading

import pytest

torch = pytest.importorskip("torch")

import chitu_attention as ca  # noqa: E402
from torch.nn.attention.bias import causal_lower_right, causal_upper_left  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as attend  # noqa: E402


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = make(2, 4, 24, 32), make(2, 4, 24, 32, seed=1), make(2, 4, 24, 32, seed=2)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


HONOURED = {
    "plain": ((Q, K, V), {}),
    "causal": ((Q, K, V), {"is_causal": True}),
    "causal, fewer queries": ((Q[:, :, :10], K, V), {"is_causal": True}),
    "causal, fewer keys": ((Q, K[:, :, :10], V[:, :, :10]), {"is_causal": True}),
    "scale": ((Q, K, V), {"scale": 0.3}),
    "grouped": ((Q, K[:, :2], V[:, :2]), {"enable_gqa": True}),
    "3-D": ((Q[0], K[0], V[0]), {"is_causal": True}),
    "batch of the query": ((Q[:1], K, V), {}),
    "batch of the key": ((Q, K[:1], V[:1]), {}),
    "views": ((Q.transpose(1, 2).contiguous().transpose(1, 2), K, V), {}),
    "upper left": ((Q[:, :, :10], K, V), {"attn_mask": causal_upper_left(10, 24)}),
    "lower right": ((Q[:, :, :10], K, V), {"attn_mask": causal_lower_right(10, 24)}),
    "float16": ((Q.half(), K.half(), V.half()), {}),
}
TO_PYTORCH = {
    "attn_mask is given": ((Q, K, V), {"attn_mask": torch.ones(24, 24, dtype=torch.bool).tril()}),
    "dropout_p is not 0": ((Q, K, V), {"dropout_p": 0.2}),
    "query has dtype torch.float64": ((Q.double(), K.double(), V.double()), {}),
    "query has 2 dimensions": ((Q[0, 0], K[0, 0], V[0, 0]), {}),
    "value's dim is not key's": ((Q, K, V[..., :16]), {}),
    "value has a strided last dimension": ((Q, K, V.repeat_interleave(2, -1)[..., ::2]), {}),
    "query requires a gradient (backward=\"exact\" would give one)": ((Q.clone().requires_grad_(), K, V), {}),
}


@pytest.mark.parametrize("case", HONOURED)
def test_honoured(case):
    tensors, options = HONOURED[case]
    wanted = attend(*tensors, **options)
    with ca.sdpa("exact", strict=True) as block:
        got = attend(*tensors, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-3 if "16" in case else 1e-5)
    assert block.report.chitu == 1 and not block.report.torch


@pytest.mark.parametrize("reason", TO_PYTORCH)
def test_counted(reason):
    tensors, options = TO_PYTORCH[reason]
    torch.manual_seed(0)
    wanted = attend(*tensors, **options)
    ca.report(reset=True)
    torch.manual_seed(0)
    with ca.sdpa() as block:
        got = attend(*tensors, **options)
    assert torch.equal(got, wanted)
    assert block.report.chitu == 0 and block.report.torch == {reason: 1} and ca.report().torch == {reason: 1}
    assert f"1 calls to PyTorch: {reason}" in repr(block.report)
    with ca.sdpa(strict=True), pytest.raises(NotImplementedError) as caught:
        attend(*tensors, **options)
    assert reason in str(caught.value)


def test_what_the_kernels_refuse_is_counted():
    wide = make(1, 1, 4, 300)
    with ca.sdpa(kernel="cpu.reference") as block, pytest.raises(ValueError, match="dim 300"):
        attend(wide, wide, wide)
    assert block.report.chitu == 0


def test_wrong_calls_stay_wrong():
    with ca.sdpa(), pytest.raises(RuntimeError):
        attend(Q, K[:, :3], V[:, :3])
    with pytest.raises(TypeError, match="no option 'causal'"):
        ca.sdpa(causal=True)


def test_blocks_nest_and_end():
    with ca.sdpa("chitu") as outer:
        with ca.sdpa("exact") as inner:
            attend(Q, K, V)
        with ca.sdpa("torch") as left_alone:
            attend(Q, K, V)
        attend(Q, K, V)
    attend(Q, K, V)
    assert inner.report.chitu == 1 and outer.report.chitu == 1 and left_alone.report.chitu == 0 and left_alone.report.torch


def test_other_threads_are_left_alone():
    results = []
    with ca.sdpa("chitu") as block:
        thread = threading.Thread(target=lambda: results.append(attend(Q, K, V)))
        thread.start()
        thread.join()
    assert block.report.chitu == 0 and torch.equal(results[0], attend(Q, K, V))


def test_gradients():
    q = Q.clone().requires_grad_()
    with ca.sdpa("chitu", backward="exact") as block:
        attend(q, K, V, is_causal=True).square().sum().backward()
    assert block.report.chitu == 1
    wanted = Q.clone().requires_grad_()
    attend(wanted, K, V, is_causal=True).square().sum().backward()
    assert (q.grad - wanted.grad).abs().sum() / wanted.grad.abs().sum() < 0.03


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(32, 32)

    def forward(self, x):
        return attend(self.project(x), x, x, is_causal=True)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def model():
    with torch.no_grad():
        yield Model()


def test_replace(model):
    before = model(Q)
    replaced = ca.replace(model, "chitu")
    after = model(Q)
    assert replaced.report.chitu == 2 and not torch.equal(after, before) and isinstance(model, Model) and type(model).__name__ == "Model"
    thread = threading.Thread(target=torch.no_grad()(model), args=(Q,))
    thread.start()
    thread.join()
    assert replaced.report.chitu == 4
    twin = copy.deepcopy(model)
    twin.first.project.weight.zero_()
    assert not torch.equal(twin(Q), after) and torch.equal(model(Q), after)
    replaced.restore()
    assert torch.equal(model(Q), before) and type(model) is Model


@pytest.mark.parametrize("only, count", [("first", 1), ("*", 2), (["first", "second"], 2), (lambda name, m: name == "second", 1)])
def test_replace_only(model, only, count):
    with ca.replace(model, only=only) as replaced:
        model(Q)
    assert replaced.report.chitu == count
    model(Q)
    assert replaced.report.chitu == count


def test_replace_by_a_choice(model):
    with ca.replace(model, {"first": "exact", "second": "torch"}) as replaced, ca.sdpa("sage2") as outer:
        model(Q)
    assert replaced.report.chitu == 1 and replaced.report.torch == {"method is \"torch\"": 1} and outer.report.chitu == 0
    for error, text, arguments in [(ValueError, "only is 'third', which no module is called", {"only": "third"}),
                                   (ValueError, "method names the module 'third'", {"method": {"third": "chitu"}}),
                                   (TypeError, "only is given, but method", {"method": {"first": "chitu"}, "only": "first"}),
                                   (TypeError, "no option 'scale'", {"scale": 1.0})]:
        with pytest.raises(error) as caught:
            ca.replace(model, **arguments)
        assert text in str(caught.value)
    with pytest.raises(TypeError, match="it must be a torch.nn.Module"):
        ca.replace(model.forward)


def test_compiled(model):
    before = model(Q)
    replaced = ca.replace(model, "chitu", only="first")
    eager = model(Q)
    assert not torch.equal(eager, before)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(Q), eager)
    replaced.restore()

    def inside(q):
        with ca.sdpa("chitu"):
            return attend(q, K, V)

    assert torch.equal(torch.compile(inside, fullgraph=True, backend="aot_eager")(Q), ca.attention(Q, K, V))
    outside = torch.compile(lambda q: attend(q, K, V), fullgraph=True, backend="aot_eager")
    assert torch.equal(outside(Q), attend(Q, K, V))
    with ca.sdpa("chitu"):
        assert torch.equal(outside(Q), ca.attention(Q, K, V))
    assert torch.equal(outside(Q), attend(Q, K, V))


@pytest.mark.parametrize("compiled", [False, True])
def test_multi_head_attention(compiled):
    x = make(2, 10, 32)
    layer = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with torch.no_grad():
        wanted = layer(x, x, x, need_weights=False)[0]

        def run(x):
            return layer(x, x, x, need_weights=False)[0]

        with ca.sdpa("exact", strict=True) as block:
            got = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert block.report.chitu == 1


def test_encoder_layers():
    x = make(2, 10, 32)
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(32, 4, batch_first=True), 2).eval()
    with torch.no_grad():
        wanted = encoder(x)
        with ca.sdpa("exact", strict=True) as block:
            torch.testing.assert_close(encoder(x), wanted, rtol=1e-4, atol=1e-5)
        assert block.report.chitu == 2
        with ca.sdpa("exact") as block:
            torch.compile(encoder, fullgraph=True, backend="eager")(x)
        assert list(block.report.torch) == ["the fused path of nn.MultiheadAttention and nn.TransformerEncoder"]


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("only", [None, "layers.*.self_attn", "layers.1"])
@torch.no_grad()
def test_encoder_layers_are_replaced(backend, only):
    """In eval mode they would run as one fused operator, in which no call of attention is seen."""
    x = make(2, 10, 32)
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(32, 4, batch_first=True), 2, enable_nested_tensor=False).eval()
    wanted = encoder(x)
    with ca.replace(encoder, "exact", only=only, strict=True) as replaced:
        run = torch.compile(encoder, fullgraph=True, backend=backend) if backend else encoder
        torch.testing.assert_close(run(x), wanted, rtol=1e-4, atol=1e-5)
        assert replaced.report.chitu == (1 if only == "layers.1" else 2) and not replaced.report.torch
    assert not any(m._forward_pre_hooks for m in encoder.modules())
    assert torch.equal(encoder(x), wanted)


@pytest.fixture
def registered():
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl
    activate_flash_attention_impl(ca.register_flash_attention("exact"))
    ca.report(reset=True)
    yield
    restore_flash_attention_impl()


def test_registry(registered):
    from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl
    assert current_flash_attention_impl() == "CHITU"
    cases = {case: arguments for case, arguments in HONOURED.items() if case in ("plain", "causal", "causal, fewer queries", "causal, fewer keys", "scale",
                                                                               "grouped", "views")}
    results = {case: attend(*tensors, **options) for case, (tensors, options) in cases.items()}
    mask = torch.ones(24, 24, dtype=torch.bool).tril()
    masked = attend(Q, K, V, attn_mask=mask)
    leaf = Q.clone().requires_grad_()
    attend(leaf, K, V).sum().backward()
    compiled = torch.compile(lambda *qkv: attend(*qkv), fullgraph=True, backend="aot_eager")(Q, K, V)
    assert ca.report().chitu == len(cases) + 1 and ca.report().torch == {
        "attn_mask is given": 1, "query requires a gradient (backward=\"exact\" would give one)": 1}
    restore_flash_attention_impl()
    for case, (tensors, options) in cases.items():
        wanted = attend(*tensors, **options)
        torch.testing.assert_close(results[case], wanted, rtol=1e-4, atol=1e-5)
        assert results[case].stride() == wanted.stride(), case
    assert torch.equal(masked, attend(Q, K, V, attn_mask=mask)) and ca.report().chitu == len(cases) + 1
    torch.testing.assert_close(compiled, attend(Q, K, V), rtol=1e-4, atol=1e-5)
    again = Q.clone().requires_grad_()
    attend(again, K, V).sum().backward()
    assert torch.equal(leaf.grad, again.grad)
