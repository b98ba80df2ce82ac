# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.diffusers on small random models of diffusers."""

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import chitu_attention as ca  # noqa: E402
import chitu_attention.diffusers  # noqa: E402, F401
import ranks  # noqa: E402
from diffusers.models import attention_dispatch as dispatch  # noqa: E402

pytestmark = pytest.mark.slow


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strong(model):
    """Weights so large that attention matters to the result."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 2 * parameter.shape[1:].numel()**-0.5, generator=generator)
    return model.eval()


def flux():
    torch.manual_seed(0)
    model = strong(diffusers.FluxTransformer2DModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
                                                    num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
                                                    axes_dims_rope=[4, 4, 8]))
    inputs = {"hidden_states": make(1, 16, 4), "encoder_hidden_states": make(1, 8, 32, seed=1), "pooled_projections": make(1, 32, seed=2),
              "timestep": torch.tensor([1.0]), "img_ids": torch.randint(0, 4, (16, 3)).float(), "txt_ids": torch.zeros(8, 3)}
    return model, lambda: model(**inputs).sample, 2


def wan():
    torch.manual_seed(0)
    model = strong(diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                                   text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
                                                   qk_norm="rms_norm_across_heads", rope_max_seq_len=32))
    inputs = {"hidden_states": make(1, 4, 2, 8, 8), "timestep": torch.tensor([500]), "encoder_hidden_states": make(1, 12, 16, seed=1)}
    return model, lambda: model(**inputs).sample, 4


@pytest.fixture(autouse=True)
def state():
    """Nothing of a registration is left."""
    registry = dispatch._AttentionBackendRegistry

    def all_state():
        return (registry._active_backend, set(registry._backends), set(registry._constraints), set(registry._supported_arg_names),
                set(registry._supports_context_parallel), list(dispatch.AttentionBackendName.__members__))

    before = all_state()
    yield
    assert all_state() == before


@pytest.mark.parametrize("build", [flux, wan])
def test_models(build):
    model, run, calls = build()
    with torch.no_grad(), ca.diffusers.register("chitu_exact", "exact") as exact, ca.diffusers.register() as chitu:
        wanted = run()
        with ca.diffusers.use(model, "chitu_exact"):
            got = run()
        assert (got - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max()) and exact.report.chitu == calls and not exact.report.torch
        with ca.diffusers.use(model):
            quantised = run()
        assert chitu.report.chitu == calls and not torch.equal(quantised, wanted)
        assert (quantised - wanted).abs().sum() / wanted.abs().sum() < 0.05
        assert torch.equal(run(), wanted)


@pytest.mark.parametrize("build", [flux, wan])
@torch.no_grad()
def test_record(build):
    """With diffusers' own "native" attention each call is measured, in the module that replace() can switch."""
    model, run, calls = build()
    wanted = run()
    with ca.record(model, ["exact", "chitu"]) as r:
        assert torch.equal(run(), wanted)
    choice = r.choose(1.0, ["chitu"])
    assert sum(e.calls for e in r.errors(heads=False) if e.method == "chitu") == calls and not r.skipped
    assert set(choice.values()) == {"chitu"} and all(".attn" in layer for layer in choice)
    with ca.replace(model, choice, strict=True) as replaced:
        mixed = run()
    assert replaced.report.chitu == calls and not torch.equal(mixed, wanted)
    with ca.diffusers.register("chitu_exact", "exact") as registered, ca.diffusers.use(model, "chitu_exact"):
        with ca.record(model, ["exact", "chitu"]) as again:
            run()
        assert [e.rel_l1 for e in again.errors() if e.method == "chitu"] == pytest.approx(
            [e.rel_l1 for e in r.errors() if e.method == "chitu"], rel=0.05)
        assert not again.skipped
        with ca.replace(model, choice, strict=True) as replaced:  # it prevails over the registered "exact"
            assert torch.equal(run(), mixed)
        assert replaced.report.chitu == calls and not registered.report.torch


def test_backends_are_restored():
    registry, names = dispatch._AttentionBackendRegistry, dispatch.AttentionBackendName
    (first, run_first, _), (second, run_second, _) = flux(), flux()
    with torch.no_grad(), ca.diffusers.register(method="exact") as chitu, ca.diffusers.register("chitu_other", "exact") as other:
        first.set_attention_backend("_native_math")  # diffusers' own, which sets the process's, too
        with ca.diffusers.use(first):
            assert registry._active_backend is names._NATIVE_MATH
            run_second()
            assert chitu.report.chitu == 0
            with pytest.raises(KeyError), ca.diffusers.use(second, "chitu_other"):
                run_second()
                raise KeyError
            assert other.report.chitu == 2
            run_first()
            run_second()
            assert chitu.report.chitu == 2 and other.report.chitu == 2
        assert {module.processor._attention_backend for module in first.modules() if hasattr(module, "processor")} == {names._NATIVE_MATH}
        assert {module.processor._attention_backend for module in second.modules() if hasattr(module, "processor")} == {None}
        registry.set_active_backend(names.NATIVE)
        first.set_attention_backend("chitu")
        run_first()
        assert chitu.report.chitu == 4 and registry._active_backend is names.CHITU
        with dispatch.attention_backend("chitu_other"):
            run_second()
        assert other.report.chitu == 4
    # The state's fixture sees that the end of register() has made another backend the active one.


Q, K, V = (make(2, 24, 4, 16, seed=seed) for seed in range(3))
MASK = torch.ones(2, 24, dtype=torch.bool)
MASK[1, 20:] = False
CASES = {
    "plain": ({}, True), "is_causal": ({"is_causal": True}, True), "scale": ({"scale": 0.4}, True),
    "mask of keys": ({"attn_mask": MASK}, False), "float mask": ({"attn_mask": make(24, 24)}, False),
    "dropout_p": ({"dropout_p": 0.5}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(name):
    given, by_chitu = CASES[name]

    def attend(backend, **more):
        torch.manual_seed(0)
        return dispatch.dispatch_attention_fn(Q, K, V, backend=backend, **given, **more)

    with ca.diffusers.register(method="exact") as chitu, ca.diffusers.register("chitu_strict", strict=True):
        torch.testing.assert_close(attend("chitu"), attend("native"), rtol=0, atol=1e-5)
        assert chitu.report.chitu == by_chitu and bool(chitu.report.torch) != by_chitu
        if by_chitu:
            attend("chitu_strict")
            out, lse = attend("chitu", attention_kwargs={"return_lse": True})
            wanted = ca.attention(Q, K, V, layout="bshd", method="exact", return_lse=True, causal=given.get("is_causal", False),
                                  scale=given.get("scale"))
            assert torch.equal(out, wanted[0]) and torch.equal(lse, wanted[1])
        else:
            word = next(iter(given))
            with pytest.raises(NotImplementedError, match=word):
                attend("chitu_strict")
            with pytest.raises(NotImplementedError, match=word):
                attend("chitu", attention_kwargs={"return_lse": True})


def test_grouped_heads():
    with ca.diffusers.register(method="exact") as chitu:
        wanted = dispatch.dispatch_attention_fn(Q, K[:, :, :2], V[:, :, :2], enable_gqa=True, backend="native")
        got = dispatch.dispatch_attention_fn(Q, K[:, :, :2], V[:, :, :2], enable_gqa=True, backend="chitu")
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        assert chitu.report.chitu == 1
        with pytest.raises(ValueError, match="enable_gqa is not given"):
            dispatch.dispatch_attention_fn(Q, K[:, :, :2], V[:, :, :2], backend="chitu", attention_kwargs={"return_lse": True})


def test_gradients():
    q = Q.clone().requires_grad_()
    with ca.diffusers.register() as chitu, ca.diffusers.register("chitu_train", "exact", backward="exact") as train:
        gradients = []
        for name in ("native", "chitu", "chitu_train"):
            gradients += torch.autograd.grad(dispatch.dispatch_attention_fn(q, K, V, backend=name).square().sum(), q)
        assert chitu.report.chitu == 0 and train.report.chitu == 1
        with pytest.raises(NotImplementedError, match="requires a gradient"):
            dispatch.dispatch_attention_fn(q, K, V, backend="chitu", attention_kwargs={"return_lse": True})
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-3, atol=1e-4)


def test_compile():
    with torch.no_grad(), ca.diffusers.register(method="exact"):
        member = dispatch.AttentionBackendName.CHITU
        torch._dynamo.reset()
        compiled = torch.compile(lambda q, k, v: dispatch.dispatch_attention_fn(q, k, v, backend=member), backend="eager", fullgraph=True)
        assert torch.equal(compiled(Q, K, V), dispatch.dispatch_attention_fn(Q, K, V, backend=member))


def test_registration():
    for name in ("Chitu", "chitu-sage2", "chitu sage"):
        with pytest.raises(ValueError, match="name is"):
            ca.diffusers.register(name)
    with pytest.raises(ValueError, match="'native', which is a backend already"):
        ca.diffusers.register("native")
    with pytest.raises(ValueError, match="method is 'exakt'"):
        ca.diffusers.register(method="exakt")
    with pytest.raises(ValueError, match="'chitu', which is no backend"), ca.diffusers.use(flux()[0]):
        pass
    with ca.diffusers.register() as chitu:
        with pytest.raises(ValueError, match="'chitu', which is a backend already"):
            ca.diffusers.register()
    chitu.restore()


CONTEXT_PARALLEL = """
    import chitu_attention as ca, chitu_attention.diffusers
    from diffusers import ContextParallelConfig
    from diffusers.models import attention_dispatch as dispatch
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    chitu = ca.diffusers.register(method="exact")
    q, k, v = (torch.randn(2, 24, 4, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    wanted = dispatch.dispatch_attention_fn(q, k, v, backend="native", scale=0.4)

    def parallel(**config):
        config = ContextParallelConfig(**config)
        mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
        result = ParallelConfig(context_parallel_config=config)
        result.setup(rank, 2, torch.device("cpu"), mesh=mesh)
        return result

    def compare(config, begin, end):
        qkv = (x[:, begin:end].contiguous() for x in (q, k, v))
        chitu.report.reset()
        with torch.no_grad():
            got = dispatch.dispatch_attention_fn(*qkv, backend="chitu", scale=0.4, parallel_config=config)
        torch.testing.assert_close(got, wanted[:, begin:end], rtol=0, atol=1e-5)
        assert chitu.report.chitu

    for config in (parallel(ring_degree=2), parallel(ulysses_degree=2)):
        compare(config, 12 * rank, 12 * rank + 12)
    compare(parallel(ring_degree=2, ring_anything=True), 13 * rank, 13 + 11 * rank)

    qkv = [x[:, 12 * rank:12 * rank + 12].contiguous() for x in (q, k, v)]
    for config in (parallel(ring_degree=2), parallel(ulysses_degree=2)):
        x = qkv[0].clone().requires_grad_()
        try:
            dispatch.dispatch_attention_fn(x, *qkv[1:], backend="chitu", parallel_config=config)
        except NotImplementedError as error:
            assert "there are none under context parallelism" in str(error)
        else:
            raise AssertionError("a gradient")
    chitu.restore()
"""


def test_context_parallelism(tmp_path):
    ranks.run(CONTEXT_PARALLEL, tmp_path)
