# SPDX-License-Identifier: Apache-2.0
"""chitu_attention.transformers on small random models of transformers: with method "exact" each gives what "sdpa" gives."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import chitu_attention as ca  # noqa: E402
import chitu_attention.transformers  # noqa: E402, F401
from transformers import StaticCache  # noqa: E402

pytestmark = pytest.mark.slow
COMMON = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
          "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}


def make(kind, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **changes})
    model = getattr(transformers, CLASSES[kind])(config).eval()
    for name, parameter in model.named_parameters():  # the initial weights are so small that a wrong mask would not show
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    return model


CLASSES = {"Llama": "LlamaForCausalLM", "Mistral": "MistralForCausalLM", "Bert": "BertModel", "ModernBert": "ModernBertModel",
           "Gemma2": "Gemma2ForCausalLM", "GptOss": "GptOssForCausalLM", "Gemma3Text": "Gemma3ForCausalLM", "Llama4Text": "Llama4ForCausalLM",
           "Whisper": "WhisperModel", "T5": "T5Model", "ViT": "ViTModel"}
LLAMA = make("Llama", num_key_value_heads=2)
MISTRAL = make("Mistral", num_key_value_heads=2, sliding_window=4)
TOKENS = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(1))
LEFT = torch.ones(3, 12, dtype=torch.long)
LEFT[0, :5] = 0
LEFT[2, :1] = 0
RIGHT = LEFT.flip(1)
HOLES = torch.ones(3, 12, dtype=torch.long)
HOLES[1, 4:6] = 0


@pytest.fixture
def chitu():
    with ca.transformers.register(method="exact") as registered:
        yield registered


def compare(model, registered, run, *, visible=None, chitu=None, torch_calls=0):
    """run(model) gives a tensor or a list of them. chitu, torch_calls: how many calls go where; None: any number but 0."""
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        wanted = run(model)
        model.set_attn_implementation(registered.name)
        registered.report.reset()
        got = run(model)
    if visible is not None:
        wanted, got = wanted[visible], got[visible]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert sum(registered.report.torch.values()) == torch_calls, registered.report
    assert registered.report.chitu if chitu is None else registered.report.chitu == chitu, registered.report


@pytest.mark.parametrize("model", [LLAMA, MISTRAL], ids=["Llama", "Mistral"])
@pytest.mark.parametrize("mask", [None, torch.ones_like(LEFT), LEFT, RIGHT, HOLES], ids=["none", "ones", "left", "right", "holes"])
def test_padding(model, mask, chitu):
    compare(model, chitu, lambda m: m(TOKENS, attention_mask=mask).logits, visible=None if mask is None else mask.bool(),
            chitu=0 if mask is HOLES else None, torch_calls=2 if mask is HOLES else 0)


def test_padded_queries_are_zero(chitu):
    """As in PyTorch; another value would spread NaN from rows that nobody looks at."""
    compare(LLAMA, chitu, lambda m: m(TOKENS, attention_mask=LEFT).logits)


@pytest.mark.parametrize("model", [LLAMA, MISTRAL], ids=["Llama", "Mistral"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "left padding"])
def test_generate(model, static, mask, chitu):
    def run(m):
        mask_or_ones = torch.ones_like(LEFT) if mask is None else mask
        return m.generate(TOKENS, attention_mask=mask_or_ones, max_new_tokens=8, min_new_tokens=8, do_sample=False, return_dict_in_generate=True,
                          output_logits=True, disable_compile=True, **({"cache_implementation": "static"} if static else {})).logits

    compare(model, chitu, lambda m: torch.stack(run(m)))


@pytest.mark.parametrize("model", [LLAMA, MISTRAL], ids=["Llama", "Mistral"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "left padding"])
def test_prefill_in_chunks(model, static, mask, chitu):
    def run(m):
        cache = StaticCache(config=m.config, max_cache_len=16) if static else None
        logits = []
        for begin, end in ((0, 6), (6, 9), (9, 10), (10, 12)):
            out = m(TOKENS[:, begin:end], past_key_values=cache, use_cache=True, attention_mask=None if mask is None else mask[:, :end])
            cache = out.past_key_values
            logits.append(out.logits)
        return torch.cat(logits, 1)

    compare(model, chitu, run, visible=None if mask is None else mask.bool())


def test_window_without_materialised_keys(chitu):
    """A window that no query reaches the end of."""
    compare(MISTRAL, chitu, lambda m: m(TOKENS[:, :3]).logits, chitu=2)


def masks_made(monkeypatch):
    """The shapes of the masks that sdpa_mask() makes from now on."""
    shapes, original = [], transformers.masking_utils.sdpa_mask

    def counting(**arguments):
        mask = original(**arguments)
        shapes.append(None if mask is None else tuple(mask.shape))
        return mask

    monkeypatch.setattr(transformers.masking_utils, "sdpa_mask", counting)
    return shapes


@pytest.mark.parametrize("case", ["left", "right", "window", "both", "bidirectional"])
@torch.no_grad()
def test_masks_stay_unmade(case, chitu, monkeypatch):
    """Padding and windows reach the kernels as numbers: no (queries, keys) tensor is made, until somebody looks at it."""
    model = {"window": MISTRAL, "both": MISTRAL, "bidirectional": make("Bert")}.get(case, LLAMA)
    mask = {"window": None, "right": RIGHT}.get(case, LEFT)
    model.set_attn_implementation("chitu")
    shapes = masks_made(monkeypatch)
    model(TOKENS, attention_mask=mask)
    assert shapes == [] and chitu.report.chitu >= 2 and not chitu.report.torch


@torch.no_grad()
def test_a_mask_that_is_looked_at(chitu):
    """Whatever a model does with the mask is done with its values; what it changes is honoured."""
    arguments = {"batch_size": 3, "q_length": 12, "kv_length": 12, "attention_mask": LEFT.bool(),
                 "mask_function": transformers.masking_utils.causal_mask_function}
    wanted = transformers.masking_utils.sdpa_mask(**arguments)
    new = lambda: ca.transformers._mask(**arguments)
    q = torch.randn(3, 4, 12, 16)
    function = transformers.AttentionInterface._global_mapping["chitu"]
    assert new().shape == wanted.shape and new().dtype == wanted.dtype and new().contiguous().shape == wanted.shape
    for use in (lambda m: m & True, lambda m: m[:, :, :5, :7], lambda m: torch.where(m, 1.0, -2.0), lambda m: m.sum(), lambda m: m.clone(),
                lambda m: m.to(torch.float32), lambda m: torch.cat([m, m], -1), lambda m: ~m, lambda m: m.all().item(), lambda m: m.tolist()):
        got, expected = use(new()), use(wanted)
        assert torch.equal(got, expected) if isinstance(expected, torch.Tensor) else got == expected
        assert not isinstance(got, ca.transformers._Mask)
    for change in (lambda m: m.masked_fill_(torch.ones_like(m).triu(-2), False), lambda m: m.__setitem__((0, 0, 9, slice(5, 8)), False)):
        lazy, plain = new(), wanted.clone()
        change(lazy)
        change(plain)
        chitu.report.reset()
        got = function(torch.nn.Module(), q, q, q, lazy, scaling=0.25)[0]
        expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=plain, scale=0.25).transpose(1, 2)
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert chitu.report.torch == {"attention_mask is given": 1}
    lazy = new()
    torch.testing.assert_close(torch.compile(lambda m: m.float() * 2, backend="aot_eager")(lazy), wanted.float() * 2)


@torch.no_grad()
def test_layers_compiled_one_by_one(chitu):
    torch._dynamo.reset()
    model = make("Mistral", num_key_value_heads=2, sliding_window=4)
    model.set_attn_implementation("sdpa")
    wanted = [model(TOKENS[:, :n], attention_mask=LEFT[:, :n]).logits for n in (12, 9)]
    model.set_attn_implementation("chitu")
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    for n, expected in zip((12, 9), wanted):
        got = model(TOKENS[:, :n], attention_mask=LEFT[:, :n]).logits
        torch.testing.assert_close(got[LEFT[:, :n].bool()], expected[LEFT[:, :n].bool()], rtol=1e-4, atol=1e-4)


POSITIONS = torch.cat([torch.arange(5), torch.arange(7)])[None]


def test_packed_by_positions(chitu):
    """Without a cache transformers makes a mask of blocks, which goes to PyTorch."""
    compare(LLAMA, chitu, lambda m: m(TOKENS[:1], position_ids=POSITIONS, use_cache=False).logits, chitu=0, torch_calls=2)
    # With one it makes none, and the sequences see each other, as with "sdpa".
    compare(LLAMA, chitu, lambda m: m(TOKENS[:1], position_ids=POSITIONS).logits)


@pytest.mark.parametrize("model", [LLAMA, MISTRAL], ids=["Llama", "Mistral"])
def test_packed_by_starts(model, chitu):
    """"sdpa" ignores cu_seq_lens; each sequence by itself is what is right."""
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)
    given = {"position_ids": POSITIONS, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 7, "max_length_k": 7}
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        wanted = torch.cat([model(TOKENS[:1, :5]).logits, model(TOKENS[:1, 5:]).logits], 1)
        model.set_attn_implementation("chitu")
        chitu.report.reset()
        if model is MISTRAL:  # its window makes a mask, which says nothing of the sequences
            with pytest.raises(NotImplementedError, match="cu_seq_lens_q and attention_mask are both given"):
                model(TOKENS[:1], **given)
            return
        torch.testing.assert_close(model(TOKENS[:1], **given).logits, wanted, rtol=1e-4, atol=1e-4)
        assert chitu.report.chitu == 2 and not chitu.report.torch
        with pytest.raises(ValueError, match="only one of cu_seq_lens_q and cu_seq_lens_k"):
            model(TOKENS[:1], **{**given, "cu_seq_lens_k": None})
        with pytest.raises(ValueError, match="for a batch of 3"):
            model(TOKENS, **{**given, "position_ids": None})


@pytest.mark.parametrize("floating", [False, True], ids=["bool", "float"])
def test_a_mask_of_the_user(floating, chitu):
    mask = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    mask[:, :, 5:, 2] = False
    if floating:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    compare(LLAMA, chitu, lambda m: m(TOKENS, attention_mask=mask).logits, chitu=0, torch_calls=2)


def test_bert(chitu):
    model = make("Bert")
    for mask in (None, LEFT, RIGHT, HOLES):
        compare(model, chitu, lambda m: m(TOKENS, attention_mask=mask).last_hidden_state, chitu=0 if mask is HOLES else None,
                torch_calls=2 if mask is HOLES else 0)


def test_modern_bert(chitu):
    model = make("ModernBert", local_attention=4, num_hidden_layers=3, global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2)
    for mask in (None, RIGHT):
        compare(model, chitu, lambda m: m(TOKENS, attention_mask=mask).last_hidden_state, visible=None if mask is None else mask.bool())


def test_layers_of_two_kinds(chitu):
    model = make("Gemma3Text", num_key_value_heads=2, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    for mask in (None, LEFT):
        compare(model, chitu, lambda m: m(TOKENS, attention_mask=mask).logits, visible=None if mask is None else mask.bool())


def test_attention_in_chunks(chitu):
    """Nothing in the call says that Llama 4's layers see only their chunk: its mask does."""
    model = make("Llama4Text", num_key_value_heads=2, head_dim=16, attention_chunk_size=4, num_local_experts=2, intermediate_size_mlp=96,
                 layer_types=["chunked_attention", "full_attention"])
    compare(model, chitu, lambda m: m(TOKENS).logits, chitu=1, torch_calls=1)


def test_whisper(chitu):
    model = make("Whisper", d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8,
                 max_source_positions=20, max_target_positions=32, encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=1)
    features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(2))
    compare(model, chitu, lambda m: m(input_features=features, decoder_input_ids=TOKENS[:2]).last_hidden_state, chitu=4)


def test_vit(chitu):
    model = make("ViT", image_size=16, patch_size=4)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    compare(model, chitu, lambda m: m(images).last_hidden_state, chitu=2)


def test_position_bias_goes_to_pytorch(chitu):
    model = make("T5", d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    compare(model, chitu, lambda m: m(input_ids=TOKENS, attention_mask=RIGHT, decoder_input_ids=TOKENS).last_hidden_state, chitu=0, torch_calls=6)


@pytest.mark.parametrize("kind, changes, word", [
    ("Gemma2", {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 256}, "softcap is 50.0; .*attn_implementation=\"eager\""),
    ("GptOss", {"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux is a .*; .*sinks"),
])
def test_refused_models(kind, changes, word, chitu):
    model = make(kind, **changes)
    model.set_attn_implementation("chitu")
    with torch.no_grad(), pytest.raises(NotImplementedError, match=word):
        model(TOKENS)


def test_refused_arguments(chitu):
    LLAMA.set_attn_implementation("chitu")
    with torch.no_grad():
        for given in ({"output_attentions": True}, {"s_aux": torch.ones(4)}, {"softcap": 3.0}, {"block_table": TOKENS}, {"somewhat": 1}):
            with pytest.raises(NotImplementedError, match=next(iter(given))):
                attend(**given)
        attend(output_attentions=False, softcap=None, use_cache=True, position_ids=TOKENS, somewhat=None)


def attend(*qkv, mask=None, dropout=0.0, name="chitu", **kwargs):
    qkv = qkv or [torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    return transformers.AttentionInterface()[name](torch.nn.Module(), *qkv, mask, dropout=dropout, scaling=0.25, **kwargs)[0]


def test_learned_queries(chitu):
    q, k, v = (torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    with torch.no_grad():
        torch.testing.assert_close(attend(q[:1], k, v, is_causal=False), attend(q[:1], k, v, is_causal=False, name="sdpa"), rtol=1e-4, atol=1e-5)
    assert chitu.report.chitu == 1


def test_gradients_and_dropout(chitu):
    """In training all goes to PyTorch, unless gradients are asked for."""
    LLAMA.set_attn_implementation("sdpa")
    LLAMA(TOKENS, attention_mask=LEFT).logits[LEFT.bool()].sum().backward()
    wanted = [parameter.grad.clone() for parameter in LLAMA.parameters()]
    for options, where in (({}, "torch"), ({"backward": "exact"}, "chitu")):
        with ca.transformers.register("chitu-train", "exact", **options) as registered:
            LLAMA.zero_grad()
            LLAMA.set_attn_implementation("chitu-train")
            LLAMA(TOKENS, attention_mask=LEFT).logits[LEFT.bool()].sum().backward()
            assert bool(registered.report.chitu) == (where == "chitu") and bool(registered.report.torch) == (where == "torch")
            torch.testing.assert_close([parameter.grad for parameter in LLAMA.parameters()], wanted, rtol=1e-3, atol=1e-3)
    LLAMA.zero_grad()
    with torch.no_grad():
        chitu.report.reset()
        attend(dropout=0.5)
        assert chitu.report.torch == {"dropout_p is not 0": 1}


def test_strict():
    with ca.transformers.register("chitu-strict", strict=True):
        LLAMA.set_attn_implementation("chitu-strict")
        with torch.no_grad():
            LLAMA(TOKENS, attention_mask=LEFT)
            with pytest.raises(NotImplementedError, match="attention_mask is given"):
                LLAMA(TOKENS, attention_mask=HOLES)
        with pytest.raises(NotImplementedError, match="requires a gradient"):
            LLAMA(TOKENS)


def test_methods_are_names():
    with torch.no_grad(), ca.transformers.register(), ca.transformers.register("chitu-exact", "exact"):
        outs = []
        for name in ("chitu", "chitu-exact"):
            LLAMA.set_attn_implementation(name)
            outs.append(LLAMA(TOKENS).logits)
    assert not torch.equal(*outs) and (outs[0] - outs[1]).abs().max() < 1


def test_registration():
    interfaces = transformers.AttentionInterface, transformers.AttentionMaskInterface
    before = [dict(interface._global_mapping) for interface in interfaces]
    first = ca.transformers.register()
    second = ca.transformers.register()  # registers anew
    second.restore()
    assert all("chitu" in interface._global_mapping for interface in interfaces)
    first.restore()
    first.restore()
    assert [dict(interface._global_mapping) for interface in interfaces] == before
    for name in ("chitu_flash", "chitu/sage2", "sdpa", "flex_attention_chitu", "paged|chitu"):
        with pytest.raises(ValueError, match="a meaning of its own"):
            ca.transformers.register(name)
    with pytest.raises(ValueError, match="method is 'exakt'"):
        ca.transformers.register(method="exakt")
    with pytest.raises(TypeError, match="no option 'speed'"):
        ca.transformers.register(speed=2)
    assert [dict(interface._global_mapping) for interface in interfaces] == before


def make_mask(**changes):
    return transformers.AttentionMaskInterface()["chitu"](**{"batch_size": 2, "q_length": 8, "kv_length": 8,
                                                             "attention_mask": LEFT[:2, 2:10].bool(), **changes})


@pytest.mark.parametrize("change", [None, "another", "written", "of one row"])
def test_a_changed_mask_counts(change, chitu):
    """What the mask said when it was made is forgotten when the model makes another one of it, or writes to it."""
    q, k, v = (torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mask = make_mask()
    if change == "another":
        mask = mask & torch.tensor([True, False] * 4)
    elif change == "written":
        mask[..., 5] = False
    elif change == "of one row":
        mask = make_mask(batch_size=1, attention_mask=LEFT[:1, 2:10].bool())
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask=mask), attend(q, k, v, mask=mask, name="sdpa"), rtol=1e-4, atol=1e-5)
    assert chitu.report.chitu == (change is None)


def test_inference_mode(chitu):
    LLAMA.set_attn_implementation("chitu")
    with torch.inference_mode():
        LLAMA(TOKENS, attention_mask=LEFT)
    assert chitu.report.chitu == 2 and not chitu.report.torch


def test_compile(chitu):
    LLAMA.set_attn_implementation("sdpa")
    with torch.no_grad():
        wanted = LLAMA(TOKENS, attention_mask=LEFT, use_cache=False).logits
        LLAMA.set_attn_implementation("chitu")
        torch._dynamo.reset()
        compiled = torch.compile(LLAMA, backend="eager", fullgraph=True)
        got = compiled(TOKENS, attention_mask=LEFT, use_cache=False).logits
        torch.testing.assert_close(got[LEFT.bool()], wanted[LEFT.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries, keys", [(8, 5), (5, 8), (8, 8), (1, 8)])
def test_causal_without_a_mask_is_top_left(queries, keys, chitu):
    q, k, v = (torch.randn(2, 4, tokens, 16, generator=torch.Generator().manual_seed(tokens)) for tokens in (queries, keys, keys))
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, is_causal=True), attend(q, k, v, is_causal=True, name="sdpa"), rtol=1e-4, atol=1e-5)
    assert chitu.report.chitu == 1


@pytest.mark.parametrize("queries", [1, 3, 8])
def test_the_rest_of_a_static_cache_is_not_read(queries):
    """It may hold anything, which quantisation would take scales and means of."""
    k, v = (torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    q = torch.randn(2, 4, queries, 16, generator=torch.Generator().manual_seed(2))
    mask = None
    with torch.no_grad(), ca.transformers.register("chitu-cache", strict=True):
        if queries < 8:
            make_mask = transformers.AttentionMaskInterface()["chitu-cache"]
            mask = make_mask(batch_size=2, q_length=queries, kv_length=16, q_offset=torch.tensor(8 - queries), allow_is_causal_skip=False)
        wanted = attend(q, k, v, mask=mask, name="chitu-cache")
        for x in (k, v):
            x[:, :, 8:] = 1e4
        assert torch.equal(attend(q, k, v, mask=mask, name="chitu-cache"), wanted)


def test_masks_that_are_recognised():
    from transformers import masking_utils as m
    sides = ca.transformers._sides
    assert sides(m.causal_mask_function) == (-1, 0) and sides(m.bidirectional_mask_function) == (-1, -1)
    assert sides(m.sliding_window_causal_mask_function(5)) == (4, 0) and sides(m.sliding_window_bidirectional_mask_function(5)) == (5, 5)
    none = torch.zeros(1, dtype=torch.long)
    for other in (m.chunked_causal_mask_function(4, none), m.and_masks(m.sliding_window_overlay(4), m.bidirectional_mask_function),
                  m.and_masks(m.sliding_window_bidirectional_overlay(4), m.causal_mask_function),
                  m.or_masks(m.causal_mask_function, m.causal_mask_function),
                  m.and_masks(m.sliding_window_overlay(4), m.causal_mask_function, m.causal_mask_function), m.sliding_window_overlay(4),
                  m.and_masks(m.causal_mask_function, m.causal_mask_function), m.packed_sequence_mask_function(none[None]), lambda *i: True):
        assert sides(other) is None
