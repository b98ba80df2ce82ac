#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The tables of run.sh and of docs/results.md, as Markdown: every method on captured heads and on normal tensors, at 1K, 4K and 10K tokens,
# the quickest first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bench() {
  printf '\n%s\n\n' "\`build/chitu bench $*\`"
  build/chitu bench "$@"
}

printf 'Captured heads, as far as they were captured (1792 and 4096 tokens):\n'
bench --method all --lengths 1K --input data/gpt_d128.safetensors --causal
bench --method all --lengths 1K,4K --input data/gpt_d64.safetensors --causal
printf '\nNormal tensors; 10K with 2 heads, so that a slow machine is done in minutes too:\n'
bench --method all --lengths 1K,4K --heads 8 --dim 128
bench --method all --lengths 10K --heads 2 --dim 128
