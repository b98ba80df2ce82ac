# SPDX-License-Identifier: Apache-2.0
"""On a CUDA GPU: python -m pytest python/tests -m gpu."""

import pickle

import pytest

torch = pytest.importorskip("torch")

import c_abi  # noqa: E402
import chitu_attention as ca  # noqa: E402

pytestmark = pytest.mark.gpu
METHODS = list(ca.methods())


def make(batch=1, heads=4, queries=300, keys=700, dim=128, kv_heads=2, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
            for shape in ((batch, heads, queries, dim), *[(batch, kv_heads, keys, dim)] * 2)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128])
def test_bits_of_the_c_interface(method, dtype, dim):
    q, k, v = make(dim=dim, dtype=dtype)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
    torch.cuda.synchronize()
    c_abi.attention(q, k, v, out, lse, method, (-1, 0), 0.2)
    torch.cuda.synchronize()
    got, got_lse = ca.attention(q, k, v, method=method, causal=True, scale=0.2, return_lse=True)
    assert torch.equal(got, out) and torch.equal(got_lse, lse)


def test_against_pytorch():
    q, k, v = make()
    wanted = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
    for method in METHODS:
        error = (ca.attention(q, k, v, method=method) - wanted).abs().sum() / wanted.abs().sum()
        assert error < (0.005 if method == "exact" else 0.08), method


def test_streams_and_workspaces():
    """A call runs in the current stream, without waiting, and calls in two streams do not share memory."""
    q, k, v = make(queries=4096, keys=4096)
    wanted = ca.attention(q, k, v)
    streams = [torch.cuda.Stream() for _ in range(3)]
    outs = []
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(ca.attention(q, k, v))
    torch.cuda.synchronize()
    assert all(torch.equal(out, wanted) for out in outs)
    late = torch.cuda.Stream()
    x = torch.zeros_like(q)
    torch.cuda.synchronize()
    with torch.cuda.stream(late):
        torch.cuda._sleep(200_000_000)
        x.copy_(q)
        out = ca.attention(x, k, v)  # behind the copy, or it would see zeros
        assert not late.query()  # and it did not wait
    torch.cuda.synchronize()
    assert torch.equal(out, wanted)
    out = ca.attention(q, k, v, stream=late)
    late.synchronize()
    assert torch.equal(out, wanted)
    ca.release_workspaces()
    assert torch.equal(ca.attention(q, k, v), wanted)


@pytest.mark.parametrize("parts", [2, 5])
def test_merge(parts):
    """On the current stream, behind what it waits for, into a part of another type as well, and in a captured graph."""
    q, k, v = make()
    wanted, wanted_lse = ca.attention(q, k, v, method="exact", return_lse=True)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        shards = [ca.attention(q, keys, values, method="exact", return_lse=True)
                  for keys, values in zip(k.tensor_split(parts, 2), v.tensor_split(parts, 2))]
        ca.merge(*shards)  # loads the kernel, which waits
        torch.cuda._sleep(200_000_000)
        out, lse = ca.merge(*shards)
        assert not stream.query()
        sums = (shards[0][0].float(), shards[0][1].clone())
        ca.merge(sums, *shards[1:], out=sums[0], lse=sums[1])
    torch.cuda.synchronize()
    assert out.dtype == q.dtype and (out - wanted).abs().max() < 0.02 and (lse - wanted_lse).abs().max() < 1e-3
    assert (sums[0] - wanted).abs().max() < 0.02 and torch.equal(sums[1], lse)
    graph = torch.cuda.CUDAGraph()
    out.zero_()
    with torch.cuda.graph(graph):
        ca.merge(*shards, out=out, lse=lse)
    graph.replay()
    torch.cuda.synchronize()
    assert (out - wanted).abs().max() < 0.02
    with pytest.raises(ValueError, match="out of part 1 is on cpu:0, out of the first part on cuda:0"):
        ca.merge(shards[0], tuple(x.cpu() for x in shards[1]))


def test_workspace_is_kept():
    q, k, v = make()
    ca.attention(q, k, v)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    out = torch.empty_like(q)
    for _ in range(10):
        ca.attention(q, k, v, out=out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == 1  # `out`


@pytest.mark.parametrize("method", METHODS)
def test_graphs(method):
    q, k, v = make()
    wanted = ca.attention(q, k, v, method=method)
    other = ca.attention(q * 2, k, v, method=method)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = ca.attention(q, k, v, method=method)
        second = ca.attention(q, k, v, method=method)
    for factor, expected in ((1, wanted), (2, other)):
        q.mul_(factor)
        eager = ca.attention(q, k, v, method=method)  # with a workspace of its own
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(first, expected) and torch.equal(second, expected) and torch.equal(eager, expected)


def test_threads_share_a_stream():
    from concurrent.futures import ThreadPoolExecutor
    q, k, v = make(queries=1000, keys=1000)
    wanted = ca.attention(q, k, v)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: ca.attention(q, k, v), range(200)):
            assert torch.equal(out, wanted)


def test_compiled():
    q, k, v = make()
    compiled = torch.compile(lambda *qkv: ca.attention(*qkv, causal=True, return_lse=True), fullgraph=True)
    for got, wanted in zip(compiled(q, k, v), ca.attention(q, k, v, causal=True, return_lse=True)):
        assert torch.equal(got, wanted)
    graphed = torch.compile(lambda *qkv: ca.attention(*qkv) + 1, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        assert torch.equal(graphed(q, k, v), ca.attention(q, k, v) + 1)
    torch.library.opcheck(torch.ops.chitu_attention.forward, (q, k, v, "chitu", "bhsd", True, None, None, True, None, None, None, None, None, 0, "none",
                                                              None, None, None, None, None, None))


def test_autocast_and_gradients():
    q, k, v = make()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(ca.attention(q.float(), k.float(), v), ca.attention(q, k, v))
    leaf = q.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="query requires a gradient"):
        ca.attention(leaf, k, v)
    ca.attention(leaf, k, v, backward="exact").float().sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.any()


def test_refusals():
    q, k, v = make()
    with pytest.raises(ValueError, match="key is on cpu:0, query on cuda:0"):
        ca.attention(q, k.cpu(), v)
    with pytest.raises(TypeError, match="query_starts on a GPU must be one contiguous row of int32"):
        ca.attention(q, k, v, query_starts=torch.tensor([0, 300], device="cuda"), key_starts=[0, 700])
    with pytest.raises(ValueError, match="query_starts have [02] entries, (device_)?key_starts"):
        ca.attention(q, k, v, query_starts=torch.tensor([0, 300], device="cuda", dtype=torch.int32), key_starts=[0, 700], max_queries=300,
                     max_keys=700)
    with pytest.raises(ValueError, match="threads is 2"):
        ca.attention(q, k, v, threads=2)
    with pytest.raises(NotImplementedError):
        ca.attention(q.float(), k.float(), v.float())  # the text has each kernel's reason
    with pytest.raises(NotImplementedError, match="it takes f16 and bf16, but key is f32"):
        ca.quantize(k.float(), "key")
    with pytest.raises(ValueError, match="keys are missing"):
        ca.quantize(v, "value")
    with pytest.raises(ValueError, match="threads is 2"):
        ca.quantize(k, "key", threads=2)
    with pytest.raises(ValueError, match="it must be the key's"):
        ca.quantize_keys_and_values(k, v[:, :, 1:])
    with pytest.raises(ValueError, match="centre is on cpu:0"):
        ca.quantize(k, "key", centre=torch.zeros(1, 2, 1, 128))
    keys = ca.quantize(k, "key")
    with pytest.raises(NotImplementedError, match="only parts in CPU memory"):
        keys.part("values")
    with pytest.raises(NotImplementedError, match="only one in CPU memory can be stored"):
        pickle.dumps(keys)
    with pytest.raises(NotImplementedError, match="needs its key, quantised"):
        ca.attention(q, k, ca.quantize_keys_and_values(k, v)[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_quantized(method, layout):
    """Keys and values at once: the bits of a call from the tensors. Each alone: nearly these."""
    q, k, v = (x if layout == "bhsd" else x.transpose(1, 2).contiguous() for x in make(batch=2))
    arguments = {"method": method, "layout": layout}
    wanted, wanted_lse = ca.attention(q, k, v, return_lse=True, **arguments)
    keys, values = ca.quantize_keys_and_values(k, v, **arguments)
    out, lse = ca.attention(q, keys, values, return_lse=True, **arguments)
    assert torch.equal(out, wanted) and torch.equal(lse, wanted_lse)
    assert (keys.role, values.role, keys.shape, keys.dtype) == ("key", "value", (2, 2, 700, 128), "bfloat16")
    alone = ca.quantize(k, "key", **arguments)
    sorted_keys = {"keys": alone} if ca.methods()[method].recipe.key.sorted else {}
    values = ca.quantize(v, "value", **sorted_keys, **arguments)
    queries = ca.quantize(q, "query", keys=alone, **arguments)
    for query in (q, queries):
        out, lse = torch.empty_like(q), torch.empty_like(wanted_lse)
        ca.attention(query, alone, values, out=out, lse=lse, **arguments)
        assert (out - wanted).abs().sum() < 0.01 * wanted.abs().sum() and (lse - wanted_lse).abs().max() < 3e-3
    assert "takes it" in ca.explain(q, alone, values, **arguments)


def test_quantized_memory():
    """It is PyTorch's, one block, and neither the tensors nor memory that was handed on is needed."""
    q, k, v = make()
    wanted = ca.attention(q, k, v)
    keys, values = ca.quantize_keys_and_values(k, v)
    assert keys.block.dtype == torch.uint8 and keys.block.device == k.device
    assert keys.block.data_ptr() + keys.block.numel() == values.block.data_ptr()
    del k, v
    junk = [torch.full((1, 2, 700, 128), 3., device="cuda", dtype=torch.bfloat16) for _ in range(8)]
    block = values.block
    assert torch.equal(ca.attention(q, keys, values), wanted) and len(junk) == 8
    del keys, values
    assert block.sum() > 0
    assert ca.quantize(q, "query", method="exact").block is None


def test_quantized_streams():
    """Nothing waits; a stream that is named works as well, and a graph replays both calls with new numbers."""
    q, k, v = make(queries=2048, keys=2048)
    wanted, other = ca.attention(q, k, v), ca.attention(q, k * 2, v)
    ca.attention(q, *ca.quantize_keys_and_values(k, v))  # loads kernels, which waits
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        out = ca.attention(q, *ca.quantize_keys_and_values(k, v))
        assert not stream.query()
    torch.cuda.synchronize()
    assert torch.equal(out, wanted)
    keys, values = ca.quantize_keys_and_values(k, v, stream=stream)
    assert keys.block is None  # the library's
    out = ca.attention(q, keys, values, stream=stream)
    stream.synchronize()
    assert torch.equal(out, wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ca.attention(q, *ca.quantize_keys_and_values(k, v))
    for factor, expected in ((1, wanted), (2, other)):
        k.mul_(factor)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


def test_quantized_to_the_host():
    """Each number is the CPU's, but for rounding; the host's form can be stored."""
    _, k, v = make()
    keys, values = ca.quantize_keys_and_values(k, v, method="sage2")
    for here, x in ((keys.to_host(), k), (values.to_host(), v)):
        again = pickle.loads(pickle.dumps(here))
        there = ca.quantize(x.cpu(), here.role, method="sage2")
        mine, its = (torch.frombuffer(bytearray(y.part("values").tobytes()), dtype=torch.uint8) for y in (again, there))
        assert (mine != its).float().mean() < 0.01
    with pytest.raises(ValueError, match="key is in CPU memory already"):
        keys.to_host().to_host()


def test_lengths_on_the_gpu():
    """Of a padded batch, which no call copies to the host; compiled, too."""
    q, k, v = make(batch=2)
    lengths = [k.shape[2] - 200, 5]
    on_gpu = torch.tensor(lengths, device="cuda", dtype=torch.int32)
    wanted = torch.cat([ca.attention(q[i:i + 1], k[i:i + 1, :, :n], v[i:i + 1, :, :n], causal=True) for i, n in enumerate(lengths)])
    k[1, :, 5:] = torch.nan
    compiled = torch.compile(ca.attention, fullgraph=True)
    for function in (ca.attention, compiled):
        for given in (lengths, on_gpu):
            torch.testing.assert_close(function(q, k, v, causal=True, key_lengths=given), wanted, rtol=0, atol=5e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ca.attention(q, k, v, causal=True, key_lengths=on_gpu, max_keys=600)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sdpa():
    q, k, v = make(kv_heads=4, queries=700)
    with ca.sdpa("exact", strict=True) as block:
        got = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=2e-2, atol=2e-2)
    assert block.report.chitu == 1
    with ca.sdpa("chitu") as block:
        torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert block.report.chitu == 0 and len(block.report.torch) == 1  # no kernel takes float32 on a GPU


def test_other_libraries():
    cupy = pytest.importorskip("cupy")
    q, k, v = make(dtype=torch.float16)
    wanted = ca.attention(q, k, v)
    arrays = [cupy.from_dlpack(x) for x in (q, k, v)]
    assert torch.equal(torch.from_dlpack(ca.attention(*arrays)), wanted)


def test_doctor():
    assert "cuda." in ca.doctor()


def test_registry():
    from torch.nn.attention import SDPBackend, activate_flash_attention_impl, restore_flash_attention_impl, sdpa_kernel
    q, k, v = make(kv_heads=4, queries=700)
    activate_flash_attention_impl(ca.register_flash_attention("exact"))
    ca.report(reset=True)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            got = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    finally:
        restore_flash_attention_impl()
    assert ca.report().chitu == 1
    torch.testing.assert_close(got, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=2e-2, atol=2e-2)


class Attend(torch.nn.Module):
    def forward(self, q, k, v, **options):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_record(causal, tmp_path):
    """Errors are those of the methods, by head; sums stay on the GPU, and no call waits for it."""
    q, k, v = make(queries=700)
    model = torch.nn.Sequential()
    model.layer = Attend()
    with ca.record(model.layer, rows=10**6) as warm:  # memory and kernels are found
        model.layer(q, k, v, is_causal=causal)
    with ca.record(model.layer, rows=10**6) as r:
        torch.cuda.set_sync_debug_mode("error")
        try:
            wanted = model.layer(q, k, v, is_causal=causal)
            model.layer(q, k, v, is_causal=causal)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert warm.seconds()["chitu"] > 0 and torch.equal(wanted, model.layer(q, k, v, is_causal=causal))
    truth = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal, enable_gqa=True)
    errors = {(e.method, e.head): e for e in r.errors()}
    refused = r._refused.get("", {})
    assert "chitu" not in refused and "exact" not in refused
    for method in set(METHODS) - set(refused):
        out, lse = ca.attention(q, k, v, method=method, causal=causal, query_positions=0 if causal else None, return_lse=True)
        for head in range(q.shape[1]):
            e = errors[method, head]
            difference = (out.double() - truth)[:, head].abs()
            assert e.calls == 2
            assert e.rel_l1 == pytest.approx((difference.sum() / truth[:, head].abs().sum()).item(), rel=1e-6)
            assert e.worst_row == pytest.approx((difference.sum(-1) / truth[:, head].abs().sum(-1)).max().item(), rel=1e-6)
            assert e.lse < 0.1
    with ca.replace(model.layer, r.choose(0.05), strict=True) as replaced:
        model.layer(q, k, v, is_causal=causal)
    assert replaced.report.chitu == 1
    with ca.record(model.layer, ["chitu"], save=tmp_path, max_l1=0.0) as r:
        model.layer(q, k, v, is_causal=causal)
    assert len(r.saved) == 1


def test_record_of_float32():
    """No kernel takes it on a GPU: each method is refused with a reason, and the choice is PyTorch."""
    q, k, v = make(dtype=torch.float32)
    model = Attend()
    with ca.record(model) as r:
        model(q, k, v)
    assert "chitu is refused" in r.table() and r.choose() == {"": "torch"}
