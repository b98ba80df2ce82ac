# SPDX-License-Identifier: Apache-2.0
"""attention() and its companions on NumPy's arrays and on whatever speaks a protocol of arrays."""

import copy
import pickle

import numpy as np
import pytest

import chitu_attention as ca


def make(batch=1, heads=2, queries=40, keys=150, dim=32, kv_heads=None, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    shapes = (batch, heads, queries, dim), *[(batch, kv_heads or heads, keys, dim)] * 2
    return [random.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in shapes]


def exact(query, key, value, scale=None, seen=None):
    """(out, lse) in double precision. seen: bool (queries, keys)."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, 1), np.repeat(value, group, 1)
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1]**-0.5 if scale is None else scale)
    if seen is not None:
        scores = np.where(seen, scores, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.exp(scores)
        total = weights.sum(-1, keepdims=True)
        return np.where(total > 0, weights / np.where(total > 0, total, 1) @ value, 0), np.log(total[..., 0])


def close(got, wanted, tolerance):
    assert got.shape == wanted.shape
    assert np.abs(got.astype(np.float64) - wanted).max() < tolerance


@pytest.mark.parametrize("method", list(ca.methods()))
def test_methods(method):
    q, k, v = make(kv_heads=1)
    out, lse = ca.attention(q, k, v, method=method, return_lse=True)
    wanted, wanted_lse = exact(q, k, v)
    tolerance = 1e-5 if method == "exact" else 0.05
    close(out, wanted, tolerance)
    close(lse, wanted_lse, tolerance)
    assert isinstance(out, np.ndarray) and out.dtype == np.float32 and lse.dtype == np.float32


@pytest.mark.parametrize("causal, window, scale, first, wanted", [
    (True, None, None, None, lambda q, k: k <= q + 110),
    (False, (20, 3), 0.3, None, lambda q, k: (k >= q + 110 - 20) & (k <= q + 110 + 3)),
    (False, (20, None), None, None, lambda q, k: k >= q + 110 - 20),
    (True, (20, -1), None, None, lambda q, k: (k >= q + 110 - 20) & (k <= q + 110)),
    (True, None, None, 0, lambda q, k: k <= q),
    (True, None, None, -7, lambda q, k: k <= q - 7),
    (True, None, None, (5, 3), lambda q, k: k <= 5 + 3 * q),
])
def test_masks(causal, window, scale, first, wanted):
    q, k, v = make()
    seen = wanted(np.arange(40)[:, None], np.arange(150))
    out, lse = ca.attention(q, k, v, method="exact", causal=causal, window=window, scale=scale, query_positions=first, return_lse=True)
    wanted_out, wanted_lse = exact(q, k, v, scale, seen)
    close(out, wanted_out, 1e-5)
    rows = seen.any(1)
    close(lse[:, :, rows], wanted_lse[:, :, rows], 1e-5)
    assert np.isneginf(lse[:, :, ~rows]).all() and not out[:, :, ~rows].any()


def test_key_positions():
    q, k, v = make()
    seen = 1000 + 2 * np.arange(150) <= 1100 + np.arange(40)[:, None]
    close(ca.attention(q, k, v, method="exact", causal=True, query_positions=1100, key_positions=(1000, 2)), exact(q, k, v, seen=seen)[0], 1e-5)


@pytest.mark.parametrize("pairs", [list, np.array, lambda pairs: [np.array(pair) for pair in pairs]])
def test_positions_of_each(pairs):
    """Of each batch entry, and of each packed sequence."""
    q, k, v = make(batch=2)
    queries, keys = pairs([(60, 1), (-5, 3)]), pairs([(0, 1), (40, 2)])
    options = {"method": "exact", "causal": True}
    out = ca.attention(q, k, v, query_positions=queries, key_positions=keys, **options)
    packed = [np.concatenate(list(x), 1)[None] for x in (q, k, v)]
    starts = {"query_starts": [0, 40, 80], "key_starts": [0, 150, 300]}
    packed_out = ca.attention(*packed, query_positions=queries, key_positions=keys, **starts, **options)
    for i in range(2):
        wanted = ca.attention(*(x[i:i + 1] for x in (q, k, v)), query_positions=tuple(map(int, queries[i])),
                              key_positions=tuple(map(int, keys[i])), **options)
        assert (out[i] == wanted[0]).all() and (packed_out[0, :, 40 * i:40 * i + 40] == wanted[0]).all()
    with pytest.raises(ValueError, match="query_positions_of have 2 entries, but there are 1 sequences"):
        ca.attention(*packed, query_positions=queries)
    with pytest.raises(ValueError, match=r"query_positions have step 0"):
        ca.attention(q, k, v, query_positions=pairs([(0, 1), (3, 0)]))


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "sbhd", "hsd", "shd", "hbsd"])
def test_layouts(layout):
    q, k, v = make(batch=2 if "b" in layout else 1)
    order = ["bhsd".index(letter) for letter in layout]

    def arranged(x):
        return np.ascontiguousarray(np.transpose(x if "b" in layout else x[0], order if "b" in layout else [i - 1 for i in order]))

    out, lse = ca.attention(q, k, v, return_lse=True)
    got, got_lse = ca.attention(*map(arranged, (q, k, v)), layout=layout, return_lse=True)
    assert (got == arranged(out)).all() and (got_lse == (lse if "b" in layout else lse[0])).all()
    strided, _ = ca.attention(*(np.transpose(arranged(x), range(arranged(x).ndim)) for x in (q, k, v)), layout=layout, return_lse=True)
    assert (strided == got).all()


def test_strides_are_kept():
    wide = make(dim=96)
    parts = [x[..., 32:64] for x in wide]
    assert (ca.attention(*parts) == ca.attention(*map(np.ascontiguousarray, parts))).all()
    reverse = [x[:, :, ::-1] for x in make()]
    assert (ca.attention(*reverse) == ca.attention(*map(np.ascontiguousarray, reverse))).all()
    heads_last = [np.asfortranarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0) for x in make()]
    assert (ca.attention(*heads_last) == ca.attention(*make())).all()


def test_outputs_that_are_given():
    q, k, v = make()
    wanted, wanted_lse = ca.attention(q, k, v, return_lse=True)
    room = np.full((1, 2, 40, 64), 7, np.float32)
    lse = np.full((1, 2, 40), 7, np.float32)
    assert ca.attention(q, k, v, out=room[..., :32], lse=lse).base is room
    assert (room[..., :32] == wanted).all() and (room[..., 32:] == 7).all() and (lse == wanted_lse).all()
    answer = ca.attention(q, k, v, out=room[..., 32:], return_lse=True)
    assert isinstance(answer, tuple) and (answer[1] == wanted_lse).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    q, k, v = make(dtype=getattr(ml_dtypes, dtype, None) or dtype)
    out = ca.attention(q, k, v, method="exact")
    assert out.dtype == q.dtype
    close(out, exact(q, k, v)[0], 0.01)
    close(ca.attention(q[:, :, ::2], k, v, method="exact"), exact(q[:, :, ::2], k, v)[0], 0.01)


def test_read_only_inputs_and_other_protocols():
    q, k, v = make()
    wanted = ca.attention(q, k, v)
    for x in (q, k, v):
        x.flags.writeable = False
    assert (ca.attention(q, k, v) == wanted).all()
    out = np.empty_like(wanted)
    assert isinstance(ca.attention(memoryview(q), memoryview(k), memoryview(v), out=memoryview(out)), memoryview)
    assert (out == wanted).all()

    class Capsule:  # an array that speaks DLPack alone, with and without versions
        def __init__(self, array, versions):
            self.array, self.versions = array, versions

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __dlpack__(self, **arguments):
            if not self.versions and "max_version" in arguments:
                raise TypeError("no max_version")
            return self.array.__dlpack__(**arguments)

    for versions in (False, True):
        out[:] = 0
        ca.attention(*(Capsule(x.copy(), versions) for x in (q, k, v)), out=Capsule(out, versions))
        assert (out == wanted).all()


def test_jax():
    jnp = pytest.importorskip("jax.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float32, ml_dtypes.bfloat16):
        arrays = make(dtype=dtype)
        out = np.empty_like(arrays[0])
        ca.attention(*map(jnp.asarray, arrays), out=out)
        assert (out == ca.attention(*arrays)).all()
    with pytest.raises(TypeError, match="out must be given"):
        ca.attention(*map(jnp.asarray, arrays))
    with pytest.raises(ValueError, match="out is read-only|out is an array of JAX"):
        ca.attention(*arrays, out=jnp.asarray(out))


@pytest.mark.parametrize("queries, keys, batch, heads", [(0, 5, 1, 2), (5, 0, 1, 2), (5, 5, 0, 2), (5, 5, 1, 0), (1, 1, 1, 1)])
def test_empty(queries, keys, batch, heads):
    q, k, v = (np.ones((batch, heads, n, 16), np.float32) for n in (queries, keys, keys))
    out, lse = ca.attention(q, k, v, return_lse=True)
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    if keys == 0:
        assert not out.any() and np.isneginf(lse).all()


def test_packed():
    q, k, v = make(queries=60, keys=200)
    query_starts, key_starts = [0, 20, 20, 60], np.array([0, 50, 90, 200], np.int32)
    out, lse = ca.attention(q[0], k[0], v[0], layout="hsd", query_starts=query_starts, key_starts=key_starts, causal=True, return_lse=True)
    for q0, q1, k0, k1 in ((0, 20, 0, 50), (20, 60, 90, 200)):
        one, one_lse = ca.attention(q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1], causal=True, return_lse=True)
        assert (out[:, q0:q1] == one[0]).all() and (lse[:, q0:q1] == one_lse[0]).all()


def test_key_lengths():
    """Each entry of a padded batch is as a call of its own; what lies behind its keys is not read."""
    q, k, v = make(batch=3, queries=60, keys=200)
    lengths = [200, 0, 77]
    for i, n in enumerate(lengths):
        k[i, :, n:] = v[i, :, n:] = np.nan
    for given in (lengths, tuple(lengths), np.array(lengths)):
        out, lse = ca.attention(q, k, v, key_lengths=given, causal=True, return_lse=True)
        for i, n in enumerate(lengths):
            one, one_lse = ca.attention(q[i:i + 1], k[i:i + 1, :, :n], v[i:i + 1, :, :n], causal=True, return_lse=True)
            assert (out[i] == one[0]).all() and (lse[i] == one_lse[0]).all()
    for wrong, text in (([1, 2], "key_lengths have 2 entries"), ([1, 2, 201], r"key_lengths\[2\] is 201"), ([1, -1, 2], r"key_lengths\[1\] is -1")):
        with pytest.raises(ValueError, match=text):
            ca.attention(q, k, v, key_lengths=wrong)
    with pytest.raises(ValueError, match="max_queries is 5"):
        ca.attention(q, k, v, key_lengths=lengths, max_queries=5)
    with pytest.raises(ValueError, match="max_keys is -1"):
        ca.attention(q, k, v, max_keys=-1)


def test_quantized_operands():
    q, k, v = make()
    wanted, wanted_lse = ca.attention(q, k, v, return_lse=True)
    keys, values = ca.quantize(k, "key"), ca.quantize(v, "value")
    queries = ca.quantize(q, "query", keys=keys)
    out, lse = ca.attention(q, keys, values, return_lse=True)
    assert (out == wanted).all() and (lse == wanted_lse).all()
    room = np.empty_like(wanted)
    assert (ca.attention(queries, keys, v, out=room) == wanted).all()
    assert keys.role == "key" and keys.shape == k.shape and keys.dtype == "float32"
    centre, integers = np.asarray(keys.part("centre")), np.asarray(keys.part("values"))
    assert centre.shape == (1, 2, 1, 32) and integers.dtype == np.int8 and integers.shape == k.shape
    assert keys.part("channels") is None and values.part("channels") is not None
    ranks = np.asarray(keys.part("ranks"))
    assert ranks.dtype == np.uint8 and ranks.shape == (*integers.shape[:3], 1) and values.part("ranks") is None
    again = ca.quantize(k, "key", centre=centre)
    assert (np.asarray(again.part("values")) == integers).all()
    other = ca.quantize(k, "key", centre=centre + 1)
    assert not (np.asarray(other.part("values")) == integers).all()
    view = values.part("scales")
    del values
    assert np.isfinite(np.asarray(view)).all()  # the view keeps its operand
    with pytest.raises(ValueError, match="name is 'rows'"):
        keys.part("rows")
    with pytest.raises(TypeError, match="out must be given"):
        ca.attention(queries, keys, v)


@pytest.mark.parametrize("method", list(ca.methods()))
def test_quantized_keys_and_values(method):
    q, k, v = make()
    wanted = ca.attention(q, k, v, method=method)
    keys, values = ca.quantize_keys_and_values(k, v, method=method)
    assert (keys.role, values.role) == ("key", "value") and keys.block is None
    assert (ca.attention(q, keys, values, method=method) == wanted).all()
    assert keys._stored() == ca.quantize(k, "key", method=method)._stored()
    assert values._stored() == ca.quantize(v, "value", method=method)._stored()
    centre, channels = ({name: np.full((1, 2, 1, 32), 2, np.float32)} if part.part(name) is not None else {}
                        for part, name in ((keys, "centre"), (values, "channels")))
    keys, values = ca.quantize_keys_and_values(k, v, method=method, **centre, **channels)
    assert keys._stored() == ca.quantize(k, "key", method=method, **centre)._stored()
    assert values._stored() == ca.quantize(v, "value", method=method, **channels)._stored()


def test_quantize_keys_and_values_refusals():
    for error, text, arguments in [(ValueError, "value has shape [1, 2, 6, 32]; it must be the key's", {"value": V[:, :, 1:7]}),
                                   (ValueError, "centre is given", {"method": "fp8", "centre": np.zeros((1, 2, 1, 32), np.float32)}),
                                   (ValueError, "stream is given", {"stream": 1}), (TypeError, "stream is 'a'", {"stream": "a"}),
                                   (ValueError, "layout is 'hsdx'", {"layout": "hsdx"}), (TypeError, "value", {"value": 3})]:
        with pytest.raises(error) as caught:
            ca.quantize_keys_and_values(**{"key": K, "value": V, **arguments})
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="key is in CPU memory already"):
        ca.quantize(K, "key").to_host()
    with pytest.raises(TypeError, match="keys is 3"):
        ca.quantize(K, "key").to_host(3)


def test_unquantised_operand_keeps_its_array():
    q, k, v = make()
    wanted = ca.attention(q, k, v, method="exact")
    keys = ca.quantize(k.copy(), "key", method="exact")
    junk = [np.full_like(k, 3) for _ in range(20)]
    assert (ca.attention(q, keys, v, method="exact") == wanted).all() and junk


@pytest.mark.parametrize("method", [*ca.methods(), "recipe"])
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
def test_quantized_pickles(method, packed):
    """Through pickle and copy, an operand gives the same bits, with residuals and tokens that are not finite."""
    if method == "recipe":
        recipe = ca.methods()["chitu"].recipe
        method = recipe.replace(key=recipe.key.replace(rotated=False), query=recipe.query.replace(rotated=False))
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 200, 32), dtype=np.float32) for i in range(3))
    v[0, 0, 3] /= 1000  # a tile with residuals
    k[0, 1, 7, 2], q[0, 0, 4, 0], v[0, 1, 150, 3] = np.inf, np.nan, -np.inf
    starts = [0, 60, 200] if packed else None
    keys = ca.quantize(k, "key", method=method, starts=starts)
    operands = [ca.quantize(q, "query", method=method, starts=starts, keys=keys), keys, ca.quantize(v, "value", method=method, starts=starts)]
    options = {"method": method, "causal": True, "query_starts": starts, "key_starts": starts, "return_lse": True}
    wanted = ca.attention(*operands, out=np.empty_like(q), lse=np.empty((1, 2, 200), np.float32), **options)
    for again in (pickle.loads(pickle.dumps(operands)), [copy.deepcopy(x) for x in operands]):
        assert [(x.role, x.shape, x.dtype) for x in again] == [(x.role, x.shape, x.dtype) for x in operands]
        got = ca.attention(*again, out=np.empty_like(q), lse=np.empty((1, 2, 200), np.float32), **options)
        for a, b in zip(got, wanted):
            assert a.tobytes() == b.tobytes()
    if method == "chitu":
        assert again[2].part("residuals").tobytes() == operands[2].part("residuals").tobytes()


def test_quantized_pickles_of_views():
    """An operand that is not quantised views the array; its copy owns what it holds, and gaps are left out."""
    wide = np.random.default_rng(0).standard_normal((1, 300, 2, 64), dtype=np.float32)
    k = wide[..., :32].transpose(0, 2, 1, 3)
    data = pickle.dumps(ca.quantize(k, "key", method="exact"))
    wanted = ca.attention(k[:, :, :5].copy(), k, k, method="exact")
    q = k[:, :, :5].copy()
    wide[:] = 0
    keys = pickle.loads(data)
    assert len(data) < wide.nbytes
    assert np.array_equal(ca.attention(q, keys, keys_as_values(keys), method="exact"), wanted)


def keys_as_values(keys):
    return np.asarray(keys.part("values")).copy()


def test_quantized_pickles_that_are_damaged():
    """Each is refused with a reason; none is read past its end."""
    stored = ca.quantize(V, "value")._stored()
    from chitu_attention._attention import _restored
    assert _restored(stored).shape == V.shape
    version, role, shape, dtype, quant, starts, parts, residual_of, nonfinite = stored
    values = parts[0]
    damaged = {
        "version": (version + 1, *stored[1:]),
        "this version": (version, 7, *stored[2:]),
        "shape is not that of its values": (version, role, (1, 2, 3, 4), *stored[3:]),
        "dtype": (version, role, shape, dtype, b"\x09" + quant[1:], *stored[5:]),
        "do not fit its shape": (*stored[:6], ((values[0], values[1], values[2][:-1]), *parts[1:]), *stored[7:]),
        "scales: missing": (*stored[:6], (values, None, *parts[2:]), *stored[7:]),
        "residual_of has": (*stored[:7], residual_of + b"\0\0\0\0", nonfinite),
        "whole numbers": (*stored[:7], residual_of[:-1], nonfinite),
        "not of its dim": (*stored[:8], ((0, 0, 0, b"1234"),)),
        "there is no such token": (*stored[:8], ((0, 0, 10**9, bytes(4 * V.shape[3])),)),
        "parts_count": (*stored[:6], parts + (None,) * 9, *stored[7:]),
    }
    for reason, tuple_ in damaged.items():
        with pytest.raises((ValueError, NotImplementedError), match=reason):
            _restored(tuple_)
    for wrong in (None, (), stored[:8], (*stored[:5], 3, *stored[6:]), (*stored[:6], 3, *stored[7:]), (*stored[:8], (3,)), (*stored[:5], ("a",), *stored[6:])):
        with pytest.raises((TypeError, SystemError)):
            _restored(wrong)


def test_quantized_layout():
    q, k, v = make()
    keys = ca.quantize(np.ascontiguousarray(k.transpose(0, 2, 1, 3)), "key", layout="bshd")
    assert (ca.attention(q, keys, v) == ca.attention(q, k, v)).all()


def test_merge():
    q, k, v = make()
    parts = [ca.attention(q, k[:, :, part], v[:, :, part], method="exact", return_lse=True) for part in (slice(0, 60), slice(60, None))]
    out, lse = ca.merge(*parts[0], *parts[1])
    close(out, exact(q, k, v)[0], 1e-5)
    close(lse, exact(q, k, v)[1], 1e-5)
    ca.merge(*parts[0], *parts[1], out=parts[0][0], lse=parts[0][1])
    assert (parts[0][0] == out).all() and (parts[0][1] == lse).all()
    with pytest.raises(ValueError, match="out of part 1 has shape"):
        ca.merge(out, lse, out[:, :, :3], lse[:, :, :3])
    with pytest.raises(TypeError, match="merge.. got 3 arrays"):
        ca.merge(out, lse, out)
    with pytest.raises(TypeError, match="merge.. got 0 arrays"):
        ca.merge()


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_merge_of_parts(layout):
    q, k, v = make()
    turned = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)) if layout == "bshd" else x for x in (q, k, v)]
    axis = layout.index("s")
    bounds = [0, 20, 21, 60, k.shape[2]]
    parts = []
    for begin, end in zip(bounds, bounds[1:]):
        keys, values = (np.take(x, range(begin, end), axis) for x in turned[1:])
        parts.append(ca.attention(turned[0], keys, values, method="exact", layout=layout, return_lse=True))
    out, lse = ca.merge(*parts, layout=layout, threads=2)
    close(out.transpose(0, 2, 1, 3) if layout == "bshd" else out, exact(q, k, v)[0], 1e-5)
    close(lse, exact(q, k, v)[1], 1e-5)
    again = ca.merge(*(array for part in parts for array in part), layout=layout)
    assert (again[0] == out).all() and (again[1] == lse).all()
    ca.merge(*parts, out=parts[2][0], lse=parts[2][1], layout=layout)
    assert (parts[2][0] == out).all() and (parts[2][1] == lse).all()
    with pytest.raises(ValueError, match="lse of part 3 has 4 dimensions"):
        ca.merge(*parts[:3], (parts[3][0], parts[3][0]), layout=layout)


def test_explain_and_tables():
    q, k, v = make()
    text = ca.explain(q, k, v)
    assert text.rstrip().endswith("takes it")
    kernel = ca.kernels()[-1]
    assert kernel.name == "cpu.reference" and kernel.available and kernel.device == "cpu"
    assert "cpu.reference" in ca.explain(q, k, v, kernel="cpu.reference")
    close(ca.attention(q, k, v, kernel="cpu.reference"), exact(q, k, v)[0], 0.05)
    chitu = ca.methods()["chitu"]
    assert chitu.summary and chitu.origin and chitu.recipe.query.rotated and chitu.recipe.key.sorted and not chitu.recipe.query.sorted
    assert ca.__version__ in ca.doctor()


def test_recipes():
    q, k, v = make()
    for name, method in ca.methods().items():
        assert (ca.attention(q, k, v, method=method.recipe) == ca.attention(q, k, v, method=name)).all(), name
        assert ca.Recipe._unpacked(method.recipe._packed) == method.recipe
    recipe = ca.methods()["chitu"].recipe
    changed = recipe.replace(query=recipe.query.replace(rotated=False), key=recipe.key.replace(rotated=False))
    out = ca.attention(q, k, v, method=changed)
    assert not (out == ca.attention(q, k, v)).all()
    close(out, exact(q, k, v)[0], 0.05)
    assert (ca.attention(q, k, v, method=ca.Recipe()) == ca.attention(q, k, v, method="exact")).all()
    assert changed == recipe.replace(query=changed.query, key=changed.key) and hash(changed) != hash(recipe)
    with pytest.raises(ValueError, match="scaling is 'rows'; it must be one of none, tokens"):
        ca.attention(q, k, v, method=recipe.replace(key=recipe.key.replace(scaling="rows")))
    with pytest.raises(ValueError, match="only INT8 keys with groups of 128 are sorted"):
        ca.attention(q, k, v, method=recipe.replace(key=recipe.key.replace(groups=(64, 1))))
    with pytest.raises(ValueError, match="rotated alike"):
        ca.attention(q, k, v, method=recipe.replace(query=recipe.query.replace(rotated=False)))


Q, K, V = make()
READ_ONLY = np.empty_like(Q)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("error, text, arguments", [
    (TypeError, "query has dtype float64; it must be float32, float16 or bfloat16", {"query": Q.astype(np.float64)}),
    (TypeError, "key has dtype int8", {"key": K.astype(np.int8)}),
    (TypeError, "value has dtype >f4", {"value": V.astype(">f4")}),
    (TypeError, "key is a list; it must be an array", {"key": [1.0]}),
    (TypeError, "out is a str", {"out": "out"}),
    (ValueError, "query has 3 dimensions, but the layout names 4", {"query": Q[0]}),
    (ValueError, "query has 5 dimensions; there may be at most 4", {"query": Q[None]}),
    (ValueError, "the last dimension must be contiguous", {"value": V.repeat(2, -1)[..., ::2]}),
    (ValueError, "query has dim 32, key 16", {"key": K[..., :16], "value": V[..., :16]}),
    (ValueError, "which is no multiple of key's 3", {"key": K.repeat(3, 1)[:, :3], "value": V.repeat(3, 1)[:, :3]}),
    (ValueError, "layout is 'bhs'", {"layout": "bhs"}),
    (ValueError, "layout is 'bhhd'", {"layout": "bhhd"}),
    (ValueError, "layout is 3", {"layout": 3}),
    (ValueError, "there is no method 'sage9'; the methods are exact", {"method": "sage9"}),
    (TypeError, "method is 3", {"method": 3}),
    (TypeError, "window is 5; it must be None or", {"window": 5}),
    (TypeError, "window is", {"window": (1, 2, 3)}),
    (ValueError, "window has a side of -2", {"window": (-2, 0)}),
    (ValueError, "causal is True, but window lets", {"window": (3, 3), "causal": True}),
    (ValueError, "scale is inf", {"scale": float("inf")}),
    (ValueError, "out is read-only", {"out": READ_ONLY}),
    (ValueError, "out has shape", {"out": np.empty_like(Q[:, :, :3])}),
    (ValueError, "lse has 4 dimensions", {"lse": np.empty((1, 2, 40, 1), np.float32)}),
    (TypeError, "lse has dtype float64", {"lse": np.empty((1, 2, 40))}),
    (ValueError, "query_starts have 2 entries, key_starts 0", {"query_starts": [0, 40]}),
    (TypeError, "query_starts must be a list", {"query_starts": 4}),
    (TypeError, "key_positions is 'x'", {"key_positions": "x"}),
    (ValueError, "query_positions have step 0", {"query_positions": (3, 0)}),
    (TypeError, "query_positions is []; it must be None, the first token's position, (first, step), or such a pair", {"query_positions": []}),
    (TypeError, "query_positions is 5; it must be", {"query_positions": [(0, 1), 5]}),
    (ValueError, "threads is -1", {"threads": -1}),
    (ValueError, "stream is given, but the tensors are on the CPU", {"stream": 7}),
    (TypeError, "stream is 'x'", {"stream": "x"}),
    (ValueError, "kernel is 'cpu.magic'", {"kernel": "cpu.magic"}),
    (TypeError, "kernel is 7", {"kernel": 7}),
])
def test_refusals(error, text, arguments):
    with pytest.raises(error) as caught:
        ca.attention(**{"query": Q, "key": K, "value": V, **arguments})
    assert text in str(caught.value)


def test_quantize_refusals():
    for error, text, arguments in [(ValueError, "role is 'keys'", {"role": "keys"}), (TypeError, "keys is 3", {"role": "query", "keys": 3}),
                                   (ValueError, "centre is given", {"role": "value", "centre": np.zeros((1, 2, 1, 32), np.float32)}),
                                   (ValueError, "centre: wanted f32", {"role": "key", "centre": np.zeros((1, 2, 1, 16), np.float32)})]:
        with pytest.raises(error) as caught:
            ca.quantize(K, **arguments)
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="key was quantised as another operand"):
        ca.attention(Q, ca.quantize(V, "value"), V)


def test_no_memory_is_lost():
    import resource
    q, k, v = make(queries=8, keys=8)
    bad = q.astype(np.float64)

    def many():
        for _ in range(3000):
            ca.attention(q, k, v, return_lse=True, threads=1)
            ca.quantize(k, "key", threads=1).part("values")
            with pytest.raises(TypeError):
                ca.attention(q, k, bad)

    many()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2000  # KiB
