#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts one head out of a safetensors file with tensors q, k, v [1, heads, tokens, dim].

How the files in data/ were made from longer captures, which are too large to keep here:

    tools/make_data.py capture_d64.safetensors --head 3 --out data/gpt_d64.safetensors
    tools/make_data.py capture_d128.safetensors --head 1 --tokens 1792 --out data/gpt_d128.safetensors

Only the standard library is used. Numbers are copied as they are.
"""

import argparse
import ast
import json
import struct

BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read(path):
    """Header and data of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), file.read()


def cut(tensor, data, head, tokens):
    """The first `tokens` rows of one head, as bytes."""
    _, heads, length, dim = tensor["shape"]
    if not 0 <= head < heads or not 0 < tokens <= length:
        raise SystemExit(f"head {head} and {tokens} tokens do not fit {tensor['shape']}")
    row = dim * BYTES[tensor["dtype"]]
    begin = tensor["data_offsets"][0] + head * length * row
    return data[begin : begin + tokens * row]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture")
    parser.add_argument("--head", type=int, required=True, help="index in the file")
    parser.add_argument("--tokens", type=int, help="the first so many; all unless given")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    header, data = read(options.capture)
    metadata = header.pop("__metadata__", {})
    if "heads" in metadata:  # (layer, head) of each head in the capture
        metadata["heads"] = str([ast.literal_eval(metadata["heads"])[options.head]])

    tensors, parts, offset = {"__metadata__": metadata}, [], 0
    for name in "qkv":
        tensor = header[name]
        tokens = options.tokens or tensor["shape"][2]
        part = cut(tensor, data, options.head, tokens)
        tensors[name] = {
            "dtype": tensor["dtype"],
            "shape": [1, 1, tokens, tensor["shape"][3]],
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)

    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with open(options.out, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


if __name__ == "__main__":
    main()
