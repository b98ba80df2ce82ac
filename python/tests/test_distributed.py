# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.distributed on one to four processes with gloo, against one rank."""

import time

import pytest

torch = pytest.importorskip("torch")

import ranks  # noqa: E402

pytestmark = pytest.mark.slow

HEAD = """
    import os, time, itertools
    import chitu_attention as ca
    from chitu_attention import distributed
    torch.set_grad_enabled(False)
    size = dist.get_world_size()
    degrees = [(size // u, u) for u in range(1, size + 1) if size % u == 0]

    def data(heads, kv_heads, queries, keys, batch=1, dtype=torch.float32):
        g = torch.Generator().manual_seed(7)
        q, k, v = (torch.randn(batch, h, n, 32, generator=g) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))
        return [x.to(dtype) for x in (q, k + 2 * torch.arange(32).remainder(3), v)]

    def l1(x, y):
        return ((x.double() - y.double()).abs().sum() / y.double().abs().sum()).item()

    def compare(what, whole, shards, method, rounding=0.0, **options):
        starts = options.pop("starts", {})
        mine, theirs = shards.index(rank), shards.index(rank, keys=True)
        q, k, v = whole
        out, lse = distributed.attention(q[:, :, mine], k[:, :, theirs], v[:, :, theirs], shards, method=method, return_lse=True, timeout=60,
                                         **options)
        one, exact = (ca.attention(*whole, method=m, return_lse=True, **starts, **options) for m in (method, "exact"))
        parts = [None] * size
        dist.all_gather_object(parts, (mine, out, lse))
        got, got_lse = torch.zeros_like(q), torch.zeros(q.shape[:3])
        for index, x, y in parts:
            got[:, :, index], got_lse[:, :, index] = x, y
        finite = exact[1].isfinite()
        assert torch.equal(finite, got_lse.isfinite()), what
        if method == "exact":
            assert l1(got, one[0]) <= 1e-6 + rounding, (what, l1(got, one[0]))
            assert (got_lse - one[1])[finite].abs().max() < 1e-5, what
        else:
            assert l1(got, exact[0]) <= l1(one[0], exact[0]) + 2e-3 + rounding, (what, l1(got, exact[0]), l1(one[0], exact[0]))
            mean = lambda x: (x - exact[1])[finite].abs().mean()
            assert mean(got_lse) <= mean(one[1]) + 2e-3, what
"""
SEQUENCES = HEAD + """
    heads = 6 if size == 3 else 8
    masks = {"none": {}, "causal": {"causal": True}, "window": {"window": (150, 20)}}
    for (ring, ulysses), sharding, (name, mask) in itertools.product(degrees, ("contiguous", "zigzag", "striped"), masks.items()):
        for method in ("exact", "chitu", "int8", "sage2") if name == "causal" else ("exact", "chitu"):
            for kv_heads in (heads, 2) if heads % 2 == 0 and (2 % ulysses == 0 or ulysses % 2 == 0) else (heads,):
                shards = distributed.shard(sharding, 411, ring=ring, ulysses=ulysses)
                compare((ring, ulysses, sharding, name, method, kv_heads), data(heads, kv_heads, 411, 411), shards, method, **mask)
"""
OTHERS = HEAD + """
    heads = 6 if size == 3 else 8
    for ring, ulysses in degrees:
        make = dict(ring=ring, ulysses=ulysses)
        for method in ("exact", "chitu"):  # fewer queries than keys; shards of any size, empty ones too; two batch entries of 16 bits
            compare("queries", data(heads, heads, 90, 500), distributed.shard("contiguous", 90, key_lengths=500, **make), method, causal=True)
            sizes = [0 if i % 3 == 1 else 40 + 33 * i for i in range(size)]
            whole = data(heads, heads, sum(sizes), sum(sizes))
            compare("sizes", whole, distributed.shard_sizes(sizes, **make), method, causal=True)
            compare("few", data(heads, heads, 3, 3), distributed.shard("zigzag", 3, **make), method, causal=True)
        compare("half", data(heads, heads, 300, 300, 2, torch.float16), distributed.shard("zigzag", 300, **make), "chitu", 1e-3, causal=True)
        queries, keys = [130, 0, 257, 5, 60], [130, 20, 257, 9, 60]
        starts = {"query_starts": [0, *itertools.accumulate(queries)], "key_starts": [0, *itertools.accumulate(keys)]}
        for sharding in ("contiguous", "zigzag", "striped", "whole"):
            shards = distributed.shard(sharding, queries, key_lengths=keys, **make)
            for method in ("exact", "chitu"):
                compare(sharding, data(heads, 2, sum(queries), sum(keys)) if ulysses < 3 else data(heads, heads, sum(queries), sum(keys)), shards,
                        method, causal=True, starts=starts)
"""
JOINT = HEAD + """
    heads, text, tokens = 6 if size == 3 else 8, 20, 330
    for (ring, ulysses), rear, mask, method in itertools.product(degrees, (False, True), ({}, {"causal": True}), ("exact", "chitu")):
        whole = data(heads, heads, text + tokens, text + tokens)
        image = slice(0, tokens) if rear else slice(text, text + tokens)
        words = slice(tokens, tokens + text) if rear else slice(0, text)
        shards = distributed.shard("contiguous", tokens, ring=ring, ulysses=ulysses)
        mine = shards.index(rank)
        joint = distributed.Joint(*(x[:, :, words] for x in whole), rear)
        out, joint_out = distributed.attention(*(x[:, :, image][:, :, mine] for x in whole), shards, method=method, joint=joint, **mask)
        exact = ca.attention(*whole, method="exact", **mask)
        bound = 1e-6 if method == "exact" else 0.05
        assert l1(out, exact[:, :, image][:, :, mine]) < bound and l1(joint_out, exact[:, :, words]) < bound, (ring, ulysses, rear, mask, method)
        all_of = [torch.empty_like(joint_out) for _ in range(size)]
        dist.all_gather(all_of, joint_out.contiguous())
        assert all(torch.equal(x, joint_out) for x in all_of)
"""
DETAILS = HEAD + """
    shards = distributed.shard("contiguous", 2048, ring=size)
    q, k, v = (x[:, :, shards.index(rank)] for x in data(4, 4, 2048, 2048))
    for method, most in (("chitu", 1.25), ("exact", 4.0)):  # dim 32: scales weigh more than at 128
        stats = {}
        wanted = distributed.attention(q, k, v, shards, method=method, causal=True, stats=stats)
        assert stats["kv_bytes"] <= most * stats["kv_numbers"] if rank == 0 else True, stats
        other = distributed.attention(*(x.transpose(1, 2) for x in (q, k, v)), shards, method=method, causal=True, layout="bshd")
        assert torch.equal(other.transpose(1, 2), wanted)
    assert "travel quantised" in distributed.explain(q) and "32 bits a number" in distributed.explain(q, "exact")

    def refused(words, *arguments, **options):
        try:
            distributed.attention(*arguments, **options)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)

    odd = rank == size - 1
    refused(f"the ranks do not agree: rank 0 has window: (-1, 0); rank {size - 1} has window: (-1, -1)", q, k, v, shards, causal=not odd)
    refused(f"rank 0 has method: chitu; rank {size - 1} has method: int8", q, k, v, shards, method="int8" if odd else "chitu")
    refused(f"rank {size - 1}: query has 4 heads and 100 tokens", q[:, :, :100] if odd else q, k, v, shards)
    refused("cannot share out 4 heads", q, k, v, distributed.shard("contiguous", 2048, ulysses=size)) if size == 3 else None
    refused(f"is {size + 1} ranks, but there are {size}", q, k, v, distributed.shard("contiguous", 2048, ring=size + 1))
    refused("method is 'nothing'", q, k, v, shards, method="nothing")
    assert torch.equal(distributed.attention(q, k, v, shards, causal=True, method="exact"), wanted)  # nothing is left over
    with torch.enable_grad():
        try:
            distributed.attention(q.clone().requires_grad_(), k, v, shards)
        except (ValueError, NotImplementedError) as error:
            assert "query requires a gradient" in str(error)
"""
STOPS = HEAD + """
    shards = distributed.shard("contiguous", 300, ring=3)
    q, k, v = (x[:, :, shards.index(rank)] for x in data(4, 4, 300, 300))
    distributed.attention(q, k, v, shards)
    original = distributed._Execution.post

    def post(self, number):
        if rank == 1 and number == 3:
            os._exit(9) if {kill} else time.sleep(30)
        return original(self, number)

    distributed._Execution.post = post
    start = time.monotonic()
    try:
        distributed.attention(q, k, v, shards, timeout=3)
    except RuntimeError as error:
        print("AFTER", round(time.monotonic() - start, 1), error, flush=True)
        os._exit(3)
    os._exit(0)
"""


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("code", [SEQUENCES, OTHERS, JOINT], ids=["sequences", "others", "joint"])
def test_as_one_rank(code, size, tmp_path):
    ranks.run(code, tmp_path, size)


@pytest.mark.parametrize("size", [2, 3])
def test_bytes_layouts_and_refusals(size, tmp_path):
    ranks.run(DETAILS, tmp_path, size)


@pytest.mark.parametrize("kill", [False, True])
def test_a_rank_that_stops_ends_the_call(kill, tmp_path):
    start = time.monotonic()
    results = ranks.outcome(STOPS.replace("{kill}", str(kill)), tmp_path, 3)
    assert time.monotonic() - start < 60
    waiting = [text for rank, (status, text) in enumerate(results) if rank != 1 and status == 3]
    assert waiting, results
    assert any("waited up to 3 s for rank 1 to send keys and values for step 3" in text for text in waiting), results
