# SPDX-License-Identifier: Apache-2.0
"""Functions with the signatures of flash_attn, flash_attn_interface and sageattention: every argument of each is honoured or refused."""

import inspect
from functools import partial

import pytest

torch = pytest.importorskip("torch")

import chitu_attention as ca  # noqa: E402
from chitu_attention import _dropin, flash_attn, flash_attn_interface, sageattention  # noqa: E402

ROWS = [0, 5, 9]  # of queries in packed sequences
KEYS = [0, 6, 13]


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(q, k, v, *, causal=False, left=-1, right=-1, scale=None):
    """(out, lse) of (batch, tokens, heads, dim), in float64: an implementation of the tests' own."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1]**-0.5 if scale is None else scale)
    distance = torch.arange(k.shape[2]) - (torch.arange(q.shape[2]) + k.shape[2] - q.shape[2])[:, None]
    right = 0 if causal else right
    if left >= 0:
        scores = scores.masked_fill(distance < -left, -torch.inf)
    if right >= 0:
        scores = scores.masked_fill(distance > right, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2), scores.logsumexp(-1)


def exact_packed(q, k, v, **options):
    parts = [exact(q[None, a:b], k[None, c:d], v[None, c:d], **options) for a, b, c, d in zip(ROWS, ROWS[1:], KEYS, KEYS[1:])]
    return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], -1)


def same(got, wanted):
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-4, atol=1e-5)


Q, K, V = make(2, 9, 4, 16), make(2, 13, 2, 16, seed=1), make(2, 13, 2, 16, seed=2)
SQUARE = tuple(make(2, 13, 4, 16, seed=seed) for seed in range(3))
PACKED = make(9, 4, 16), make(13, 2, 16, seed=1), make(13, 2, 16, seed=2)


class Honoured:
    """give: the argument; wanted: options of exact() that it stands for."""

    def __init__(self, give, **wanted):
        self.give, self.wanted = give, wanted


class NoEffect:
    """accepted: any of these leaves the result alone; refused: names of no value of the original."""

    def __init__(self, *accepted, refused=()):
        self.accepted, self.refused = accepted, refused


class Refused:
    """neutral: asks for nothing; others: refused by name."""

    def __init__(self, *others, neutral=()):
        self.others, self.neutral = others, neutral


class Positional:
    """Has a test of its own."""


MASK = torch.ones(9, 13, dtype=torch.bool)
COMMON = {
    "q": Positional, "k": Positional, "v": Positional, "method": Positional, "backward": Positional,
    "causal": Honoured(True, causal=True),
    "softmax_scale": Honoured(0.3, scale=0.3),
    "window_size": Honoured([3, 1], left=3, right=1),
    "softcap": Refused(30.0, neutral=(0, 0.0)),
    "deterministic": NoEffect(True, False),
    "return_attn_probs": Positional,
}
FLASH_2 = {**COMMON, "dropout_p": Refused(0.1, neutral=(0, 0.0)), "alibi_slopes": Refused(torch.ones(4), neutral=(None,))}
FLASH_3 = {
    **COMMON,
    "qv": Refused(Q, neutral=(None,)),
    **{f"{x}_descale": Refused(torch.ones(2, 2), neutral=(None,)) for x in "qkv"},
    "attention_chunk": Refused(64, neutral=(0,)),
    "num_splits": NoEffect(0, 1, 4), "pack_gqa": NoEffect(None, True, False), "sm_margin": NoEffect(0, 8),
}
VARLEN = {"cu_seqlens_q": Positional, "cu_seqlens_k": Positional, "max_seqlen_q": Positional, "max_seqlen_k": Positional}
CACHE = {
    **{name: Positional for name in ("k_cache", "v_cache", "cache_seqlens", "cache_batch_idx", "cache_leftpad", "return_softmax_lse")},
    "rotary_cos": Refused(torch.ones(13, 8), neutral=(None,)), "rotary_sin": Refused(torch.ones(13, 8), neutral=(None,)),
    "rotary_interleaved": NoEffect(True, False, refused=("no",)), "num_splits": NoEffect(0, 1, 4),
}
# How each argument of sageattn()'s **kwargs is met, too.
ALIASES = {
    "softmax_scale": Honoured(0.3, scale=0.3), "scale": Honoured(0.3, scale=0.3), "causal": Honoured(True, causal=True),
    "dropout_p": Refused(0.1, neutral=(0.0,)), "softcap": Refused(5.0, neutral=(0, None)), "alibi_slopes": Refused(torch.ones(4), neutral=(None,)),
    "window_size": Refused((4, 0), [3, 3], neutral=((-1, -1), [-1, -1], None)), "return_softmax": Refused(True, neutral=(False,)),
    "attn_mask": Refused(MASK, neutral=(None,)), "smooth_k": NoEffect(True, False, refused=("yes",)),
    "smooth_v": NoEffect(True, False, refused=(3,)), "qk_quant_gran": NoEffect("per_warp", "per_thread", refused=("per_token",)),
    "pv_accum_dtype": NoEffect("fp16", "fp16+fp32", "fp32", "fp32+fp16", "fp32+fp32", refused=("fp8",)),
    "quantization_backend": NoEffect("cuda", "triton", refused=("cpu",)), "deterministic": NoEffect(True, False),
}
SAGE = {
    **ALIASES, "q": Positional, "k": Positional, "v": Positional, "method": Positional, "backward": Positional, "kwargs": Positional,
    "tensor_layout": Positional, "return_lse": Positional, "is_causal": Honoured(True, causal=True), "sm_scale": Honoured(0.3, scale=0.3),
}
FUNCTIONS = {
    "flash_attn_func": (flash_attn.flash_attn_func, FLASH_2),
    "flash_attn_qkvpacked_func": (flash_attn.flash_attn_qkvpacked_func, {**FLASH_2, "qkv": Positional}),
    "flash_attn_kvpacked_func": (flash_attn.flash_attn_kvpacked_func, {**FLASH_2, "kv": Positional}),
    "flash_attn_varlen_func": (flash_attn.flash_attn_varlen_func, {**FLASH_2, **VARLEN, "block_table": Refused(MASK, neutral=(None,))}),
    "flash_attn_varlen_qkvpacked_func": (flash_attn.flash_attn_varlen_qkvpacked_func, {**FLASH_2, "qkv": Positional, "cu_seqlens": Positional,
                                                                                   "max_seqlen": Positional}),
    "flash_attn_varlen_kvpacked_func": (flash_attn.flash_attn_varlen_kvpacked_func, {**FLASH_2, **VARLEN, "kv": Positional}),
    "3: flash_attn_func": (flash_attn_interface.flash_attn_func, FLASH_3),
    "3: flash_attn_varlen_func": (flash_attn_interface.flash_attn_varlen_func, {
        **FLASH_3, **VARLEN, "seqused_q": Refused(MASK, neutral=(None,)), "seqused_k": Refused(MASK, neutral=(None,))}),
    "flash_attn_with_kvcache": (flash_attn.flash_attn_with_kvcache, {**FLASH_2, **CACHE, "block_table": Refused(MASK, neutral=(None,))}),
    "3: flash_attn_with_kvcache": (flash_attn_interface.flash_attn_with_kvcache, {
        **FLASH_3, **CACHE, "max_seqlen_q": NoEffect(None, 9), "scheduler_metadata": NoEffect(None, torch.zeros(4)),
        **{name: Refused(MASK, neutral=(None,)) for name in ("page_table", "cu_seqlens_q", "cu_seqlens_k_new", "rotary_seqlens")}}),
    **{name: (getattr(sageattention, name), SAGE) for name in sageattention.__all__ if name != "sageattn_varlen"},
    "sageattn_varlen": (sageattention.sageattn_varlen, {**SAGE, **VARLEN}),
}
# The order of the originals.
SIGNATURES = {
    "flash_attn_func": "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal window_size softcap "
                              "alibi_slopes deterministic return_attn_probs block_table",
    "3: flash_attn_func": "q k v softmax_scale causal qv q_descale k_descale v_descale window_size attention_chunk softcap num_splits pack_gqa "
                          "deterministic sm_margin return_attn_probs",
    "3: flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k softmax_scale causal qv q_descale "
                                 "k_descale v_descale window_size attention_chunk softcap num_splits pack_gqa deterministic sm_margin "
                                 "return_attn_probs",
    "flash_attn_with_kvcache": "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table softmax_scale "
                               "causal window_size softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse",
    "3: flash_attn_with_kvcache": "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad page_table cu_seqlens_q "
                                  "cu_seqlens_k_new max_seqlen_q rotary_seqlens q_descale k_descale v_descale softmax_scale causal window_size "
                                  "attention_chunk softcap rotary_interleaved scheduler_metadata num_splits pack_gqa sm_margin return_softmax_lse",
    "sageattn": "q k v tensor_layout is_causal sm_scale return_lse",
    "sageattn_qk_int8_pv_fp16_triton": "q k v tensor_layout quantization_backend is_causal attn_mask sm_scale smooth_k return_lse",
    "sageattn_qk_int8_pv_fp16_cuda": "q k v tensor_layout is_causal qk_quant_gran sm_scale pv_accum_dtype smooth_k smooth_v return_lse",
    "sageattn_qk_int8_pv_fp8_cuda": "q k v tensor_layout is_causal qk_quant_gran sm_scale pv_accum_dtype smooth_k smooth_v return_lse",
    "sageattn_qk_int8_pv_fp8_cuda_sm90": "q k v tensor_layout is_causal qk_quant_gran sm_scale pv_accum_dtype smooth_k return_lse",
    "sageattn_varlen": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k is_causal sm_scale smooth_k",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_order_of_arguments(name):
    parameters = inspect.signature(FUNCTIONS[name][0]).parameters.values()
    assert " ".join(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD) == SIGNATURES[name]


def call(name):
    """(the function with tensors, these tensors as query, key and value)."""
    function = FUNCTIONS[name][0]
    if name == "sageattn_varlen":
        q, k, v = make(13, 4, 16), *PACKED[1:]
        rows = KEYS
        return partial(function, q, k, v, rows, rows, 8, 8), (q, k, v)
    if name.startswith("sageattn"):
        return partial(function, *SQUARE, tensor_layout="NHD"), SQUARE
    if name == "flash_attn_qkvpacked_func":
        return partial(function, torch.stack(SQUARE, 2)), SQUARE
    if name == "flash_attn_kvpacked_func":
        return partial(function, Q, torch.stack((K, V), 2)), (Q, K, V)
    if name == "flash_attn_varlen_qkvpacked_func":
        packed = tuple(make(13, 4, 16, seed=seed) for seed in range(3))
        return partial(function, torch.stack(packed, 1), KEYS, 8), packed
    if name == "flash_attn_varlen_kvpacked_func":
        return partial(function, PACKED[0], torch.stack(PACKED[1:], 1), ROWS, KEYS, 5, 7), PACKED
    if "varlen" in name:
        return partial(function, *PACKED, ROWS, KEYS, 5, 7), PACKED
    return partial(function, Q, K, V), (Q, K, V)


def method_of(name):
    if "fp8" in name:
        return "sage2"
    return "sage" if name.startswith("sageattn_") else "exact"


def wanted_of(name, tensors, causal=False, left=-1, right=-1, scale=None):
    """What attention() itself gives, whose other tests hold it to exact()."""
    method = method_of(name)
    window = None if left < 0 and right < 0 else (left, right)
    packed = tensors[0].dim() == 3
    rows = {} if not packed else {"query_starts": ROWS if tensors[0].shape[0] == 9 else KEYS, "key_starts": KEYS}
    return ca.attention(*tensors, method=method, layout="shd" if packed else "bshd", causal=causal, window=window, scale=scale, **rows)


def walk():
    for name, (function, table) in FUNCTIONS.items():
        parameters = set(inspect.signature(function).parameters) | (set(ALIASES) if name.startswith("sageattn") else set())
        for parameter in sorted(parameters):
            yield pytest.param(name, parameter, table.get(parameter), id=f"{name}, {parameter}")


@pytest.mark.parametrize("name, parameter, case", list(walk()))
def test_every_argument(name, parameter, case):
    assert case is not None, f"{parameter} has no entry in the tables of this test"
    if case is Positional:
        return
    bound, tensors = call(name)
    method = {"method": "exact"} if method_of(name) == "exact" else {}
    plain = bound(**method)
    assert torch.equal(plain, wanted_of(name, tensors))
    if isinstance(case, Honoured):
        got = bound(**{parameter: case.give}, **method)
        assert not torch.equal(got, plain) and torch.equal(got, wanted_of(name, tensors, **case.wanted))
    elif isinstance(case, NoEffect):
        for value in case.accepted:
            assert torch.equal(bound(**{parameter: value}, **method), plain)
        for value in case.refused:
            with pytest.raises(ValueError, match=f"{parameter} is {value!r}"):
                bound(**{parameter: value}, **method)
    else:
        for value in case.neutral:
            assert torch.equal(bound(**{parameter: value}, **method), plain)
        for value in case.others:
            with pytest.raises(NotImplementedError, match=f"{parameter} is "):
                bound(**{parameter: value}, **method)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_arguments(name):
    with pytest.raises(TypeError, match="attn_bias"):
        call(name)[0](attn_bias=None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    bound, tensors = call(name)
    first = bound.args[0].clone().requires_grad_()
    again = partial(bound.func, first, *bound.args[1:], **bound.keywords)
    with pytest.raises(NotImplementedError, match="requires a gradient"):
        again()
    again(backward="exact").sum().backward()
    assert first.grad.abs().sum() > 0
    with torch.no_grad():
        again()


@pytest.mark.parametrize("function", [flash_attn.flash_attn_with_kvcache, flash_attn_interface.flash_attn_with_kvcache], ids=["2", "3"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("on_host", [list, torch.tensor], ids=["list", "tensor"])
def test_cache(function, causal, on_host):
    """Lengths, left padding, entries in another order, and new tokens, each against exact() of the keys that are meant."""
    q = make(3, 2, 4, 16)
    cache = make(5, 20, 2, 16, seed=1), make(5, 20, 2, 16, seed=2)
    new = make(3, 3, 2, 16, seed=3), make(3, 3, 2, 16, seed=4)
    seqlens, entries, pads = [7, 7, 12], [4, 0, 1], [0, 2, 5]

    def expected(k_cache, v_cache, ends, rows=(0, 1, 2), begins=(0, 0, 0)):
        parts = [exact(q[i:i + 1], k_cache[row:row + 1, begin:end], v_cache[row:row + 1, begin:end], causal=causal)
                 for i, (row, begin, end) in enumerate(zip(rows, begins, ends))]
        return [torch.cat(part) for part in zip(*parts)]

    def check(got, wanted):
        for x, y in zip(got, wanted):
            same(x, y)

    give = {"causal": causal, "method": "exact", "return_softmax_lse": True}
    three = [x[:3] for x in cache]
    check(function(q, *three, **give), expected(*three, [20] * 3))
    check(function(q, *three, cache_seqlens=7, **give), expected(*three, [7] * 3))
    check(function(q, *three, cache_seqlens=on_host(seqlens), **give), expected(*three, seqlens))
    check(function(q, *cache, cache_seqlens=on_host(seqlens), cache_batch_idx=on_host(entries), **give), expected(*cache, seqlens, entries))
    check(function(q, *cache, cache_seqlens=on_host(seqlens), cache_batch_idx=on_host([1, 2, 3]), **give), expected(*cache, seqlens, [1, 2, 3]))
    written = [x.clone() for x in cache]
    got = function(q, *written, *new, cache_seqlens=on_host(seqlens), cache_batch_idx=on_host(entries), cache_leftpad=on_host(pads), **give)
    by_hand = [x.clone() for x in cache]
    for kept, fresh in zip(by_hand, new):
        for i, (entry, end) in enumerate(zip(entries, seqlens)):
            kept[entry, end:end + 3] = fresh[i]
    assert all(torch.equal(x, y) for x, y in zip(written, by_hand))
    check(got, expected(*by_hand, [10, 10, 15], entries, pads))
    assert isinstance(function(q, *three, method="exact"), torch.Tensor)


@pytest.mark.parametrize("function", [flash_attn.flash_attn_with_kvcache, flash_attn_interface.flash_attn_with_kvcache], ids=["2", "3"])
def test_cache_refusals(function):
    q, cache, new = make(3, 2, 4, 16), (make(3, 20, 2, 16), make(3, 20, 2, 16)), (make(3, 3, 2, 16), make(3, 3, 2, 16))
    before = [x.clone() for x in cache]
    for reason, arguments in {
            "only one of k and v": {"k": new[0], "cache_seqlens": 7}, "k is given without cache_seqlens": {"k": new[0], "v": new[1]},
            r"cache_seqlens\[0\] is 18, and the cache has no room": {"k": new[0], "v": new[1], "cache_seqlens": 18},
            "v has shape": {"k": new[0], "v": new[1][:2], "cache_seqlens": 7}, "cache_seqlens has 2 entries, not 3": {"cache_seqlens": [1, 2]},
            r"cache_seqlens\[1\] 21": {"cache_seqlens": [1, 21, 2]}, r"cache_batch_idx\[2\] is 3": {"cache_batch_idx": [0, 1, 3]},
            r"cache_leftpad\[0\] is 8": {"cache_seqlens": 7, "cache_leftpad": [8, 0, 0]}}.items():
        with pytest.raises(ValueError, match=reason):
            function(q, *cache, **arguments)
    assert all(torch.equal(x, y) for x, y in zip(cache, before))
    empty = function(q, *cache, cache_seqlens=[0, 1, 2], causal=True, method="exact", return_softmax_lse=True)
    nothing = torch.inf if function is flash_attn.flash_attn_with_kvcache else -torch.inf
    assert (empty[1][0] == nothing).all() and (empty[1][1, :, 0] == nothing).all() and empty[1][1, :, 1].isfinite().all() and not empty[0][0].any()


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_returns(causal):
    out, lse, probabilities = flash_attn.flash_attn_func(Q, K, V, causal=causal, return_attn_probs=True, method="exact")
    wanted, wanted_lse = exact(Q, K, V, causal=causal)
    same(out, wanted)
    same(lse, wanted_lse)
    assert probabilities.shape == (0,) and probabilities.dtype == Q.dtype and lse.shape == (2, 4, 9) and lse.dtype == torch.float32
    out, lse, probabilities = flash_attn.flash_attn_varlen_func(*PACKED, ROWS, KEYS, 5, 7, causal=causal, return_attn_probs=True, method="exact")
    wanted, wanted_lse = exact_packed(*PACKED, causal=causal)
    same(out, wanted)
    same(lse, wanted_lse)
    assert lse.shape == (4, 9) and probabilities.shape == (0,)
    three = flash_attn_interface.flash_attn_func(Q, K, V, causal=causal, return_attn_probs=True, method="exact")
    same(three[0], exact(Q, K, V, causal=causal)[0])
    assert len(three) == 2
    three = flash_attn_interface.flash_attn_varlen_func(*PACKED, ROWS, KEYS, 5, 7, causal=causal, return_attn_probs=True, method="exact")
    assert len(three) == 2 and torch.equal(three[1], lse)


def test_rows_without_keys():
    """More queries than keys, bottom-right: the first see nothing. FlashAttention-2 says +inf then, FlashAttention-3 -inf."""
    q, k, v = SQUARE[0], K[:, :5], V[:, :5]
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True, method="exact")
    assert (lse[:, :, :8] == torch.inf).all() and lse[:, :, 8:].isfinite().all() and (out[:, :8] == 0).all()
    _, lse = flash_attn_interface.flash_attn_func(q, k, v, causal=True, return_attn_probs=True, method="exact")
    assert (lse[:, :, :8] == -torch.inf).all()
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    _, lse, _ = flash_attn.flash_attn_varlen_func(*packed, [0, 13, 26], [0, 5, 10], 13, 5, causal=True, return_attn_probs=True, method="exact")
    assert (lse[:, :8] == torch.inf).all() and (lse[:, 13:21] == torch.inf).all() and lse[:, 8:13].isfinite().all()


def test_sageattn_returns():
    wanted, wanted_lse = exact(*SQUARE)
    for layout, tensors in (("NHD", SQUARE), ("HND", [x.transpose(1, 2) for x in SQUARE])):
        out, lse = sageattention.sageattn(*tensors, layout, return_lse=True, method="exact")
        same(out if layout == "NHD" else out.transpose(1, 2), wanted)
        same(lse, wanted_lse)
        assert lse.dtype == torch.float32 and out.shape == tensors[0].shape
    assert isinstance(sageattention.sageattn(*SQUARE, "NHD", False, None, False), torch.Tensor)
    with pytest.raises(ValueError, match="tensor_layout is 'BHSD'"):
        sageattention.sageattn(*SQUARE, tensor_layout="BHSD")


@pytest.mark.parametrize("name", [name for name in sageattention.__all__ if name != "sageattn_varlen"])
def test_sageattn_lse(name):
    out, lse = getattr(sageattention, name)(*SQUARE, tensor_layout="NHD", return_lse=True)
    wanted, wanted_lse = exact(*SQUARE)
    assert (out - wanted).abs().sum() / wanted.abs().sum() < 0.1 and lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=0.05)


def test_sageattn_as_programs_call_it():
    hnd = [x.transpose(1, 2) for x in SQUARE]
    wanted = ca.attention(*hnd)
    q, k, v = hnd
    assert torch.equal(sageattention.sageattn(q=q, k=k, v=v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False), wanted)
    # ComfyUI
    assert torch.equal(sageattention.sageattn(*hnd, is_causal=False, tensor_layout="HND", sm_scale=None, smooth_k=False), wanted)
    assert "attn_mask" not in inspect.signature(sageattention.sageattn).parameters
    # yunchang
    out, lse = sageattention.sageattn(*SQUARE, dropout_p=0.0, softmax_scale=0.3, causal=True, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                                      return_softmax=False, tensor_layout="NHD", return_lse=True)
    both = ca.attention(*SQUARE, layout="bshd", scale=0.3, causal=True, return_lse=True)
    assert torch.equal(out, both[0]) and torch.equal(lse, both[1])


def test_sageattn_contradictions():
    for given in ({"sm_scale": 0.1, "scale": 0.2}, {"softmax_scale": 0.1, "scale": 0.2}, {"is_causal": True, "causal": False}):
        with pytest.raises(TypeError, match="scale is 0.2|causal is False"):
            sageattention.sageattn(*SQUARE, **given)
    for function in (sageattention.sageattn, sageattention.sageattn_qk_int8_pv_fp8_cuda):
        with pytest.raises(NotImplementedError, match="is_causal is given for 9 queries and 13 keys"):
            function(Q, K, V, tensor_layout="NHD", is_causal=True)
    with pytest.raises(NotImplementedError, match="cu_seqlens_q and cu_seqlens_k differ"):
        sageattention.sageattn_varlen(*PACKED, ROWS, KEYS, 5, 7, is_causal=True)


def test_starts():
    def attend(rows=ROWS, keys=KEYS, longest=5, longest_keys=7):
        return flash_attn.flash_attn_varlen_func(*PACKED, rows, keys, longest, longest_keys, method="exact")

    wanted = attend()
    assert torch.equal(attend(torch.tensor(ROWS, dtype=torch.int32), torch.tensor(KEYS), torch.tensor(6), None), wanted)
    with pytest.raises(ValueError, match="max_seqlen_q is 4, but cu_seqlens_q has a sequence of 5"):
        attend(longest=4)
    with pytest.raises(ValueError, match="max_seqlen_k is 6, but cu_seqlens_k has a sequence of 7"):
        attend(longest_keys=6)
    with pytest.raises(ValueError, match="cu_seqlens_q has shape .* and dtype torch.float32"):
        attend(torch.tensor([0.0, 5.0, 9.0]))
    for rows in ([0, 5, 8], [1, 5, 9], [0, 9, 5], [0, 9]):
        with pytest.raises(ValueError, match="query_starts|starts"):
            attend(rows, longest=None)
    with pytest.raises(ValueError, match="window_size is 4"):
        flash_attn.flash_attn_func(Q, K, V, window_size=4)


def test_copies_of_starts(monkeypatch):
    """As if the tensors were on a GPU: one copy for all layers, a new one after a write, none kept of a dead tensor."""
    count = 0
    real = torch.Tensor.tolist

    def counted(tensor):
        nonlocal count
        count += 1
        return real(tensor)

    monkeypatch.setattr(_dropin, "_on_host", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    rows = torch.tensor(ROWS)
    for _ in range(3):
        assert _dropin.host_list(rows, "cu_seqlens_q") == ROWS
    assert count == 1 and len(_dropin._copies) == 1
    rows[1] = 6
    assert _dropin.host_list(rows, "cu_seqlens_q") == [0, 6, 9] and count == 2
    del rows
    assert not _dropin._copies
    with torch.inference_mode():
        rows = torch.tensor(ROWS)
        _dropin.host_list(rows, "cu_seqlens_q")
        rows[1] = 6
        assert _dropin.host_list(rows, "cu_seqlens_q") == [0, 6, 9] and not _dropin._copies


def test_packed_shapes():
    with pytest.raises(ValueError, match="qkv has shape .*dimension 2 must be 3"):
        flash_attn.flash_attn_qkvpacked_func(torch.stack((K, V), 2))
    with pytest.raises(ValueError, match="kv has shape .*dimension 2 must be 2"):
        flash_attn.flash_attn_kvpacked_func(Q, torch.stack(SQUARE, 2))


@pytest.mark.gpu
def test_starts_on_a_gpu():
    tensors = [x.half().cuda() for x in PACKED]
    rows, keys = (torch.tensor(starts, dtype=torch.int32, device="cuda") for starts in (ROWS, KEYS))
    wanted = flash_attn.flash_attn_varlen_func(*tensors, ROWS, KEYS, 5, 7)
    functions = flash_attn.flash_attn_varlen_func, flash_attn_interface.flash_attn_varlen_func
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs = [function(*tensors, rows, keys, 5, 7) for function in functions]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for out in outs:
        torch.testing.assert_close(out, wanted, rtol=0, atol=5e-3)
    with pytest.raises(NotImplementedError, match="cu_seqlens_q is on a GPU while"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        flash_attn.flash_attn_varlen_func(*tensors, rows.long(), keys.long(), 5, 7)
    with pytest.raises(ValueError, match="cu_seqlens_q has 3 entries, cu_seqlens_k 2"):
        flash_attn.flash_attn_varlen_func(*tensors, rows, keys[:2], 5, 7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn.flash_attn_varlen_func(*tensors, rows, keys, ROWS[-1], KEYS[-1])
    for starts in (ROWS, KEYS), ([0, 1, ROWS[-1]], [0, 3, KEYS[-1]]):
        rows.copy_(torch.tensor(starts[0])), keys.copy_(torch.tensor(starts[1]))
        graph.replay()
        torch.testing.assert_close(out, flash_attn.flash_attn_varlen_func(*tensors, *starts, ROWS[-1], KEYS[-1]), rtol=0, atol=5e-3)


@pytest.mark.gpu
def test_cache_on_a_gpu():
    q, cache = make(2, 3, 4, 64).half().cuda(), [make(2, 200, 2, 64, seed=seed).half().cuda() for seed in (1, 2)]
    lengths = torch.tensor([150, 77], dtype=torch.int32, device="cuda")
    for function in (flash_attn.flash_attn_with_kvcache, flash_attn_interface.flash_attn_with_kvcache):
        got = function(q, *cache, cache_seqlens=lengths, causal=True)
        wanted = [ca.attention(q[i:i + 1], *(x[i:i + 1, :n] for x in cache), layout="bshd", causal=True) for i, n in enumerate((150, 77))]
        torch.testing.assert_close(got, torch.cat(wanted), rtol=0, atol=5e-3)
        with pytest.raises(NotImplementedError, match="cache_seqlens is on a GPU while"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            function(q, *cache, cache_seqlens=lengths.long())
        new, caches = [make(2, 2, 2, 64, seed=seed).half().cuda() for seed in (3, 4)], [[x.clone() for x in cache] for _ in range(2)]
        got = function(q, *caches[0], *new, cache_seqlens=lengths, causal=True)
        wanted = function(q, *caches[1], *new, cache_seqlens=[150, 77], causal=True)
        torch.testing.assert_close(got, wanted, rtol=0, atol=5e-3)
        assert all(torch.equal(a, b) for a, b in zip(*caches))
