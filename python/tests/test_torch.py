# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch: straight to C, through its dispatcher, compiled, with gradients."""

import copy
import gc

import pytest

torch = pytest.importorskip("torch")

import c_abi  # noqa: E402
import chitu_attention as ca  # noqa: E402


def make(batch=1, heads=2, queries=40, keys=150, dim=32, kv_heads=None, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, queries, dim), *[(batch, kv_heads or heads, keys, dim)] * 2
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", list(ca.methods()))
def test_bits_of_the_c_interface(method, dtype):
    for q, k, v in (make(kv_heads=1, dtype=dtype), [x.transpose(1, 2).contiguous().transpose(1, 2) for x in make(3, dtype=dtype)]):
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
        c_abi.attention(q, k, v, out, lse, method, (7, 0), 0.2)
        same(ca.attention(q, k, v, method=method, window=(7, 0), scale=0.2, return_lse=True), (out, lse))


def test_outputs_are_like_the_query():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in make(3, dtype=torch.bfloat16))
    out, lse = ca.attention(q, k, v, return_lse=True)
    assert out.stride() == q.stride() and out.dtype == torch.bfloat16 and lse.dtype == torch.float32 and lse.shape == q.shape[:3]
    room, lse_room = torch.empty_like(q), torch.empty(3, 40, 2).transpose(1, 2)
    assert ca.attention(q, k, v, out=room, lse=lse_room) is room
    same((room, lse_room), (out, lse))
    same(ca.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout="bshd"), out.transpose(1, 2))
    same(ca.attention(torch.nn.Parameter(q, requires_grad=False), k, v), out)
    same(ca.attention(q.expand(3, 2, 40, 32)[:1].expand(3, -1, -1, -1), k, v)[:1], out[:1])


def test_packed_and_mixed_with_numpy():
    numpy = pytest.importorskip("numpy")
    q, k, v = make()
    starts = torch.tensor([0, 10, 40], dtype=torch.int32), torch.tensor([0, 100, 150])
    same(ca.attention(q, k, v, query_starts=starts[0], key_starts=starts[1]),
         ca.attention(q, k, v, query_starts=starts[0].tolist(), key_starts=starts[1].tolist()))
    out = numpy.empty(q.shape, numpy.float32)
    assert ca.attention(q, k.numpy(), v, out=out) is out
    same(torch.from_numpy(out), ca.attention(q, k, v))


def test_gradients_are_refused():
    q, k, v = make()
    for i, name in enumerate(("query", "key", "value")):
        tensors = [q, k, v]
        tensors[i] = tensors[i].clone().requires_grad_()
        with pytest.raises(NotImplementedError, match=f"{name} requires a gradient.*backward=\"exact\""):
            ca.attention(*tensors)
        with pytest.raises(Exception, match=f"{name} requires a gradient"):
            torch.compile(ca.attention, fullgraph=True, backend="aot_eager")(*tensors)
        for quiet in (torch.no_grad, torch.inference_mode):
            with quiet():
                same(ca.attention(*tensors), ca.attention(q, k, v))
        with pytest.raises(NotImplementedError, match="quantised attention has no gradient"):
            torch.ops.chitu_attention.forward(*tensors, *_defaults())[0].sum().backward()
        with pytest.raises(NotImplementedError, match=f"{name} requires a gradient"):
            torch.ops.chitu_attention.forward_out(*tensors, *_defaults(), torch.empty_like(q), None)
    with pytest.raises(NotImplementedError, match="out requires a gradient"):
        ca.attention(q, k, v, out=torch.empty_like(q, requires_grad=True))
    leaf = k.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="x requires a gradient"):
        ca.quantize(leaf, "key")
    out, lse = ca.attention(q, k, v, return_lse=True)
    with pytest.raises(NotImplementedError, match="out of part 1 requires a gradient"):
        ca.merge(out, lse, out.clone().requires_grad_(), lse)


def _defaults(**changes):
    arguments = {"method": "chitu", "layout": "bhsd", "causal": False, "window": None, "scale": None, "return_lse": True, "query_starts": None,
                 "key_starts": None, "query_positions": None, "key_positions": None, "kernel": None, "threads": 0, "backward": "none",
                 "key_lengths": None, "device_query_starts": None, "device_key_starts": None, "device_key_lengths": None, "max_queries": None,
                 "max_keys": None}
    return tuple({**arguments, **changes}.values())


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (9, 4), "scale": 0.4}, {"causal": True, "query_positions": -3},
                                     {"layout": "bshd", "causal": True}, {"kv_heads": 1}, {"packed": True, "causal": True},
                                     {"causal": True, "query_positions": [(3, 1), (-4, 1)]},
                                     {"packed": True, "causal": True, "query_positions": [(5, 1), (-2, 1)]}])
def test_exact_gradients(options):
    options = dict(options)
    q, k, v = make(2 if "packed" not in options else 1, heads=4, kv_heads=options.pop("kv_heads", 2), queries=20, keys=30, dim=8)
    if options.pop("packed", False):
        options |= {"query_starts": [0, 8, 20], "key_starts": [0, 9, 30]}
    if options.get("layout") == "bshd":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    ours, theirs = ([x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2))
    out, lse = ca.attention(*ours, method="exact", backward="exact", return_lse=True, **options)
    # -inf of queries that see no key has no gradient
    (out.square().sum() + lse.masked_fill(lse.isinf(), 0).sin().sum()).backward()
    wanted, wanted_lse = _reference(*theirs, **options)
    (wanted.square().sum() + wanted_lse.masked_fill(wanted_lse.isinf(), 0).sin().sum()).backward()
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def _reference(q, k, v, layout="bhsd", causal=False, window=(None, None), scale=None, query_positions=None, query_starts=None, key_starts=None):
    """By operations of PyTorch's that it differentiates."""
    if layout == "bshd":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    if isinstance(query_positions, list) and not query_starts and len(q) > 1:  # each batch entry by itself
        each = [_reference(q[i:i + 1], k[i:i + 1], v[i:i + 1], "bhsd", causal, window, scale, [p]) for i, p in enumerate(query_positions)]
        return torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each])
    seen = torch.zeros(q.shape[2], k.shape[2], dtype=torch.bool)
    query_starts, key_starts = query_starts or [0, q.shape[2]], key_starts or [0, k.shape[2]]
    for i, (q0, q1, k0, k1) in enumerate(zip(query_starts, query_starts[1:], key_starts, key_starts[1:])):
        first = (k1 - k0) - (q1 - q0) if query_positions is None else query_positions
        if isinstance(first, list):
            first = first[i][0]
        distance = torch.arange(k1 - k0) - (first + torch.arange(q1 - q0))[:, None]
        left, right = window[0], 0 if causal else window[1]
        seen[q0:q1, k0:k1] = (distance >= -left if left is not None else True) & (distance <= right if right is not None else torch.tensor(True))
    scores = (q @ k.transpose(-1, -2) * (q.shape[-1]**-0.5 if scale is None else scale)).masked_fill(~seen, -torch.inf)
    nothing = ~seen.any(1)[:, None]
    lse = scores.masked_fill(nothing, 0).logsumexp(-1).masked_fill(nothing[:, 0], -torch.inf)
    out = torch.softmax(scores.masked_fill(nothing, 0), -1).masked_fill(nothing, 0) @ v
    return out.transpose(1, 2) if layout == "bshd" else out, lse


def test_exact_gradients_of_a_quantised_forward_pass():
    q, k, v = (x.requires_grad_() for x in make())
    out = ca.attention(q, k, v, backward="exact")
    same(out.detach(), ca.attention(q.detach(), k.detach(), v.detach()))
    grad = torch.autograd.grad(out.sum(), (q, k, v), create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad[0].sum().backward()
    with pytest.raises(ValueError, match="backward is 'quick'"):
        ca.attention(q, k, v, backward="quick")
    with pytest.raises(NotImplementedError, match="out and lse cannot be given"):
        ca.attention(q, k, v, backward="exact", out=torch.empty_like(q))
    compiled = torch.compile(lambda *qkv: ca.attention(*qkv, backward="exact"), fullgraph=True, backend="aot_eager")
    again = torch.autograd.grad(compiled(q, k, v).sum(), (q, k, v))
    for a, b in zip(grad, again):
        same(a.detach(), b)


def test_what_dlpack_lets_through():
    q, k, v = make()
    with pytest.raises(ValueError, match=r"key has PyTorch's negative bit set: give key.resolve_neg\(\)"):
        ca.attention(q, torch._neg_view(k), v)
    negative = torch.complex(v, v).conj().imag
    with pytest.raises(ValueError, match="value has PyTorch's negative bit set"):
        ca.attention(q, k, negative)
    with pytest.raises(ValueError, match="out has PyTorch's negative bit set"):
        ca.attention(q, k, v, out=torch._neg_view(torch.empty_like(q)))
    same(ca.attention(q, k, negative.resolve_neg().contiguous()), ca.attention(q, k, -v))
    with pytest.raises(NotImplementedError, match="query is a Tensor with layout torch.sparse_coo"):
        ca.attention(q.to_sparse(), k, v)
    with pytest.raises(TypeError, match="query has dtype torch.float64"):
        ca.attention(q.double(), k, v)
    with pytest.raises(TypeError, match="key has dtype torch.int8"):
        ca.attention(q, k.to(torch.int8), v)
    nested = torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(2, 4, 8)], layout=torch.jagged)
    with pytest.raises(NotImplementedError, match="query"):
        ca.attention(nested, nested, nested)


def test_subclasses():
    class Marked(torch.Tensor):
        pass

    q, k, v = make()
    out = ca.attention(q.as_subclass(Marked), k, v)
    assert torch.equal(out.as_subclass(torch.Tensor), ca.attention(q, k, v))


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in make(3, dtype=torch.bfloat16))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        out, lse = ca.attention(*fakes, return_lse=True)
        assert ca.attention(*fakes, out=fakes[0]) is fakes[0]
    assert type(out).__name__ == "FakeTensor" and out.stride() == q.stride() and out.dtype == q.dtype and lse.shape == q.shape[:3]
    out = ca.attention(*fakes)  # without the mode
    assert type(out).__name__ == "FakeTensor"
    out, lse = ca.attention(*(x.to("meta") for x in (q, k, v)), return_lse=True)
    assert out.is_meta and out.shape == q.shape and lse.shape == q.shape[:3]
    for where, *mixed in (("key", q, k.to("meta"), v), ("value", q, k, v.to("meta")), ("key", q.to("meta"), k, v)):
        with pytest.raises(ValueError, match=f"{where} is on .*, query on .*; all must be on one device"):
            ca.attention(*mixed)
    with pytest.raises(ValueError, match="out is on meta"):
        ca.attention(q, k, v, out=torch.empty_like(q, device="meta"))


def test_dispatch_modes_and_transforms():
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **kwargs or {})

    seen = []
    q, k, v = make()
    wanted = ca.attention(q, k, v)
    with Log():
        out = ca.attention(q, k, v)
    same(out, wanted)
    assert seen == ["chitu_attention.forward.default"]
    graph = make_fx(lambda *qkv: ca.attention(*qkv))(q, k, v)
    assert "chitu_attention.forward" in graph.code
    same(graph(q, k, v), wanted)
    traced = torch.jit.trace(lambda *qkv: ca.attention(*qkv), (q, k, v))
    same(traced(q + 1, k, v), ca.attention(q + 1, k, v))
    both = torch.vmap(lambda x: ca.attention(x, k, v))(torch.stack([q, q + 1]))
    same(both, torch.stack([wanted, ca.attention(q + 1, k, v)]))
    with pytest.raises(NotImplementedError, match="query requires a gradient"):
        torch.func.grad(lambda x: ca.attention(x, k, v).sum())(q)


def test_key_lengths():
    """Compiled, too. They have no gradients."""
    q, k, v = make()
    wanted = ca.attention(q, k[:, :, :9], v[:, :, :9])
    same(ca.attention(q, k, v, key_lengths=torch.tensor([9])), wanted)
    same(torch.compile(ca.attention, fullgraph=True)(q, k, v, key_lengths=[9]), wanted)
    with pytest.raises(NotImplementedError, match="key_lengths, and starts on a GPU, cannot be given"):
        ca.attention(q, k, v, key_lengths=[9], backward="exact")


@pytest.mark.parametrize("mutates", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(mutates, gradients):
    q, k, v = (x.requires_grad_(gradients) for x in make())
    arguments = _defaults(causal=True, window=[9, -1], backward="exact" if gradients else "none")
    if not mutates:
        torch.library.opcheck(torch.ops.chitu_attention.forward, (q, k, v, *arguments))
    elif not gradients:
        torch.library.opcheck(torch.ops.chitu_attention.forward_out, (q, k, v, *arguments, torch.empty_like(q), torch.empty(1, 2, 40)))
    if gradients and not mutates:
        out = torch.randn_like(q)
        torch.library.opcheck(torch.ops.chitu_attention.backward, (out, None, q.detach(), k.detach(), v.detach(), "bhsd", True, None, None, None, None,
                                                                   None, None))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic):
    def with_out(q, k, v, out):
        ca.attention(q * 1, k, v, out=out, causal=True)
        return out + 1

    def block(q, k, v):
        out, lse = ca.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), method="sage2", causal=True, return_lse=True)
        return out.transpose(1, 2) * 2, lse + 1

    compiled, compiled_out = (torch.compile(f, fullgraph=True, dynamic=dynamic) for f in (block, with_out))
    for queries in (40, 41, 57):
        q, k, v = make(2, queries=queries)
        same(compiled(*(x.transpose(1, 2) for x in (q, k, v))), block(*(x.transpose(1, 2) for x in (q, k, v))))
        same(compiled_out(q, k, v, torch.empty_like(q)), with_out(q, k, v, torch.empty_like(q)))


def test_compiled_equals_eager():
    recipe = ca.methods()["chitu"].recipe
    recipe = recipe.replace(query=recipe.query.replace(rotated=False), key=recipe.key.replace(rotated=False))
    every = [{"causal": True, "window": (9, None), "scale": 0.3, "return_lse": True}, {"method": recipe}, {"query_positions": 4, "causal": True},
             {"query_positions": (4, 2), "key_positions": 1, "window": (30, 30)}, {"query_starts": [0, 10, 40], "key_starts": [0, 50, 150]},
             {"query_starts": [0, 10, 40], "key_starts": [0, 50, 150], "query_positions": [(3, 1), (0, 4)], "key_positions": [[0, 2], [9, 1]],
              "causal": True},
             {"kernel": "cpu.reference", "threads": 1}]
    q, k, v = make()
    for options in every:
        torch._dynamo.reset()
        compiled = torch.compile(lambda *qkv: ca.attention(*qkv, **options), fullgraph=True, backend="aot_eager")
        same(compiled(q, k, v), ca.attention(q, k, v, **options))
    torch._dynamo.reset()
    compiled = torch.compile(ca.attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for queries, keys in ((3, 40), (7, 41), (19, 57)):
        q, k, v = make(queries=queries, keys=keys)
        same(compiled(q, k, v), ca.attention(q, k, v))
    with pytest.raises(Exception, match="stream cannot be given"):
        torch.compile(lambda *qkv: ca.attention(*qkv, stream=0), fullgraph=True, backend="aot_eager")(q, k, v)


def test_autocast():
    q, k, v = make()
    b = [x.bfloat16() for x in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        got = ca.attention(q, k, b[2])
        compiled = torch.compile(ca.attention, fullgraph=True, backend="aot_eager")(q, k, b[2])
    assert got.dtype == wanted.dtype == torch.bfloat16
    same(got, ca.attention(*b))
    same(compiled, got)
    with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False):
        same(ca.attention(q, k, v), ca.attention(q, k, v))


def test_operators_live_on():
    gc.collect()
    q, k, v = make()
    same(torch.ops.chitu_attention.forward(q, k, v, *_defaults())[0], ca.attention(q, k, v))
    same(copy.deepcopy(ca.attention(q, k, v)), ca.attention(q, k, v))


def test_threads_of_python():
    """Many at once: the interpreter's lock is released, and nothing is shared that should not be."""
    from concurrent.futures import ThreadPoolExecutor
    q, k, v = make()
    wanted = ca.attention(q, k, v)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: ca.attention(q, k, v, threads=1), range(100)):
            same(out, wanted)
