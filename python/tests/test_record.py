# SPDX-License-Identifier: Apache-2.0
"""record(): errors of methods by layer and head, and the choice that replace() takes."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import chitu_attention as ca  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as attend  # noqa: E402


class Layer(torch.nn.Module):
    """Attention of a projected input; `spread` makes the scores of one layer large, and thus its errors."""

    def __init__(self, spread, heads=4, kv_heads=2, dim=32):
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.q, self.k, self.v = (torch.nn.Linear(64, n * dim) for n in (heads, kv_heads, kv_heads))
        self.out = torch.nn.Linear(heads * dim, 64)
        with torch.no_grad():
            self.q.weight.mul_(spread)

    def forward(self, x, mask=None, causal=True):
        split = lambda y, heads: y.view(*y.shape[:2], heads, self.dim).transpose(1, 2)
        q, k, v = split(self.q(x), self.heads), split(self.k(x), self.kv_heads), split(self.v(x), self.kv_heads)
        self.seen = q, k, v
        out = attend(q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=True)
        return x + self.out(out.transpose(1, 2).flatten(2))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(spread) for spread in (1.0, 40.0, 4.0))

    def forward(self, x, **kwargs):
        for layer in self.layers:
            x = layer(x, **kwargs)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


X = torch.randn(2, 150, 64, generator=torch.Generator().manual_seed(1))


def of(record, layer, head, method):
    return next(e for e in record.errors(heads=head is not None) if (e.layer, e.head, e.method) == (layer, head, method))


@torch.no_grad()
def test_errors_are_those_of_the_methods(model):
    """Against a computation on all rows at once, head by head."""
    wanted = model(X)
    with ca.record(model, rows=10**6) as r:
        got = model(X)
    assert torch.equal(got, wanted)  # the model computed as ever
    assert [e.layer for e in r.errors(heads=False) if e.method == "chitu"] == ["layers.0", "layers.1", "layers.2"]
    assert len(r.errors()) == 3 * 4 * len(ca.methods())
    for i, layer in enumerate(model.layers):
        q, k, v = layer.seen
        truth = attend(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
        for method in ca.methods():
            out, lse = ca.attention(q, k, v, method=method, causal=True, return_lse=True)
            _, true_lse = ca.attention(q, k, v, method="exact", causal=True, return_lse=True)
            difference = (out - truth).abs()
            for head in range(4):
                e = of(r, f"layers.{i}", head, method)
                assert e.calls == 1
                assert e.rel_l1 == pytest.approx((difference[:, head].sum() / truth[:, head].abs().sum()).item(), rel=1e-6, abs=1e-9)
                assert e.worst_row == pytest.approx((difference[:, head].sum(-1) / truth[:, head].abs().sum(-1)).max().item(), rel=1e-6, abs=1e-9)
                assert e.lse == pytest.approx((lse - true_lse)[:, head].abs().max().item(), abs=1e-4)
            whole = of(r, f"layers.{i}", None, method)
            assert whole.rel_l1 == pytest.approx((difference.sum() / truth.abs().sum()).item(), rel=1e-6, abs=1e-9)


@torch.no_grad()
def test_rows_and_calls_add_up(model):
    """Few rows estimate what all rows give, and a second call of another length adds to the first."""
    with ca.record(model, "chitu", rows=10**6) as r:
        model(X)
        model(X[:, :40] * 2)
    with ca.record(model, ["chitu"], rows=10**6) as first:
        model(X)
    with ca.record(model, ["chitu"], rows=40) as few:
        model(X)
    whole = of(r, "layers.0", None, "chitu")
    assert whole.calls == 2 and whole.rel_l1 != of(first, "layers.0", None, "chitu").rel_l1
    assert whole.worst_row >= of(first, "layers.0", None, "chitu").worst_row
    assert of(few, "layers.0", None, "chitu").rel_l1 == pytest.approx(of(first, "layers.0", None, "chitu").rel_l1, rel=0.3)


@torch.no_grad()
def test_compiled_models_are_measured(model):
    """They run eagerly within the block, and compiled again after it."""
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(X)
    with ca.record(compiled, "chitu") as r:
        compiled(X)
    with ca.record(model, "chitu") as wanted:
        model(X)
    assert [e[1:] for e in r.errors()] == [e[1:] for e in wanted.errors()] and len(r.errors()) == 12
    assert {e.layer for e in r.errors()} <= dict(compiled.named_modules()).keys()
    graphs = []
    torch.compile(lambda x: x + 1, backend=lambda graph, inputs: graphs.append(graph) or graph)(X)
    assert len(graphs) == 1


@torch.no_grad()
def test_choice(model):
    with ca.record(model, ["exact", "chitu"]) as r:
        model(X)
    errors = {f"layers.{i}": of(r, f"layers.{i}", None, "chitu").rel_l1 for i in range(3)}
    worst_first = sorted(errors, key=lambda layer: -errors[layer])
    assert worst_first[0] == "layers.1"
    bound = (errors[worst_first[0]] + errors[worst_first[1]]) / 2
    choice = r.choose(bound, ["chitu", "exact"])
    assert list(choice.items()) == [(worst_first[0], "exact"), (worst_first[1], "chitu"), (worst_first[2], "chitu")]
    assert r.choose(bound, ["chitu"])[worst_first[0]] == "torch"
    assert r.choose(1.0, ["exact", "chitu"]) == dict.fromkeys(worst_first, "exact")
    assert set(r.choose(1.0).values()) in ({"chitu"}, {"exact"}) and r.seconds()["chitu"] > 0  # the faster one
    wanted = model(X)
    with ca.replace(model, choice, strict=True) as replaced:
        got = model(X)
    assert replaced.report.chitu == 3
    assert 0 < ((got - wanted).abs().sum() / wanted.abs().sum()).item() < 0.02
    lines = r.table().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *worst_first]
    assert len(r.table("chitu").splitlines()) == 1 + 3 * 4
    with pytest.raises(ValueError, match="sage3"):
        r.table("sage3")
    with pytest.raises(ValueError, match="'sage', which was not recorded"):
        r.choose(methods=["sage"])


@torch.no_grad()
def test_recipes(model):
    recipe = ca.methods()["chitu"].recipe
    plain = recipe.replace(query=recipe.query.replace(rotated=False), key=recipe.key.replace(rotated=False))
    with ca.record(model, {"chitu": "chitu", "unrotated": plain}) as r:
        model(X)
    choice = r.choose(1.0, ["unrotated"])
    assert set(choice.values()) == {plain}
    assert of(r, "layers.0", None, "unrotated").rel_l1 != of(r, "layers.0", None, "chitu").rel_l1
    ca.replace(model, choice).restore()


@torch.no_grad()
def test_what_is_not_measured_is_counted(model):
    with ca.record(model) as r:
        model(X, mask=torch.ones(150, 150, dtype=torch.bool).tril())
        attend(X[:, None], X[:, None], X[:, None])
    assert r.skipped == {"attn_mask is given": 3, "a call outside the model": 1}
    assert r.errors() == [] and "3 calls were not measured: attn_mask is given" in r.table()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with ca.record(model) as r:
        pass
    assert "made no call" in r.table()
    with pytest.raises(ValueError, match="nothing was recorded"):
        r.plot("layers.svg")


def test_gradients_are_left_alone(model):
    grads = []
    for block in (False, True):
        model.zero_grad()
        if block:
            with ca.record(model, "chitu") as r:
                model(X).sum().backward()
        else:
            model(X).sum().backward()
        grads.append(model.layers[0].q.weight.grad.clone())
    assert torch.equal(*grads) and len(r.errors(heads=False)) == 3


@torch.no_grad()
def test_an_error_in_the_model_ends_the_block(model):
    with pytest.raises(RuntimeError), ca.record(model, "exact") as r:
        model(X[..., :3])
    with r:
        model(X)
    assert len(r.errors(heads=False)) == 3


@torch.no_grad()
def test_multi_head_attention():
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    with ca.record(layer, ["chitu"]) as r:
        layer(X, X, X, need_weights=False)
    assert [(e.layer, e.calls) for e in r.errors(heads=False)] == [("", 1)]
    ca.replace(layer, r.choose(1.0)).restore()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_saved_inputs(model, dtype, tmp_path):
    """`chitu accuracy` reads them, and finds the error that broke the bound."""
    model.to(dtype)
    with ca.record(model, ["chitu"], rows=10**6, max_l1=1e-4, save=tmp_path / "broken", save_at_most=2) as r:
        model(X.to(dtype))
    assert len(r.saved) == 2
    error = of(r, "layers.0", None, "chitu").rel_l1
    command = [sys.executable, "-m", "chitu_attention", "accuracy", "--input", r.saved[0], "--causal", "--method", "chitu", "--rows", "150",
               "--csv", str(tmp_path / "errors.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    if "built without the command" in done.stderr:
        pytest.skip("this installation has no chitu command")
    assert (tmp_path / "errors.csv").exists(), done.stderr
    names, values = (line.split(",") for line in (tmp_path / "errors.csv").read_text().splitlines()[:2])
    assert float(dict(zip(names, values))["rel_l1"]) == pytest.approx(error, rel=1e-3)


@torch.no_grad()
def test_saved_scale_and_alignment(tmp_path):
    """The file has no scale and is aligned bottom-right: the tensors are made to fit."""
    safetensors = pytest.importorskip("safetensors.torch")

    class Odd(torch.nn.Module):
        def forward(self, q, k, v, scale):
            return attend(q, k, v, is_causal=True, scale=scale)

    q, k, v = (torch.randn(1, 2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (50, 80, 81))
    v = v[:, :, :80]
    with ca.record(Odd(), ["chitu"], max_l1=0.0, save=tmp_path, save_at_most=9) as r:
        wanted = Odd()(q, k, v, 0.3)
        Odd()  # another model's calls do not count
    assert r.skipped and not r.saved
    model = Odd()
    with ca.record(model, ["chitu"], max_l1=0.0, save=tmp_path, save_at_most=9) as r:
        wanted = model(q, k, v, 0.3)
        model(q, k[:, :, :20], v[:, :, :20], None)
    assert len(r.saved) == 1 and r.skipped == {"not saved: causal, with fewer keys than queries": 1}
    saved = safetensors.load_file(r.saved[0])
    got = ca.attention(saved["q"], saved["k"], saved["v"], method="exact", causal=True)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_plot(model, tmp_path):
    pytest.importorskip("matplotlib")
    with ca.record(model, ["chitu", "sage2"]) as r:
        model(X)
    r.plot(tmp_path / "layers.svg")
    assert "</svg>" in (tmp_path / "layers.svg").read_text()


def test_plot_without_matplotlib(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with torch.no_grad(), ca.record(model, ["chitu"]) as r:
        model(X)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        r.plot("layers.svg")


def test_progress(model, capsys):
    pytest.importorskip("tqdm")
    with torch.no_grad(), ca.record(model, ["chitu"], progress=True):
        model(X)
    assert "chitu_attention.record" in capsys.readouterr().err


def test_refusals(model):
    with pytest.raises(TypeError, match="model is a int"):
        ca.record(3)
    with pytest.raises(ValueError, match="methods has 'best'"):
        ca.record(model, ["best"])
    with pytest.raises(ValueError, match="rows is 0"):
        ca.record(model, rows=0)
