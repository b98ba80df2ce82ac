#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The tables of a GPU by `chitu bench --device cuda`, every method, dim 128 and 64, causal or not.
#   tools/gpu_tables.sh PROGRAM RESULTS PART... [-- BENCH_ARGUMENT...]
#     PROGRAM   chitu; RESULTS: the folder for gpu_PART.md and gpu_PART.csv
#     PART      filled    1K, 4K and 16K tokens, 32768 tokens x 2048 channels a call
#               alone     the same, and dim 256, in rows of calls after a rest, so no method meets a GPU at another one's power limit
#               long      10K and 100K tokens, 2048 channels; 1M tokens, one head
#               captured  the heads in data/, as far as they were captured
#     BENCH_ARGUMENT   goes to each `chitu bench`: --method chitu, --runs 5
set -euo pipefail
program=$(realpath "$1") results=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=()
while (($#)) && [[ $1 != -- ]]; do
  parts+=("$1")
  shift
done
more=("${@:2}") # past the --
csv=$(mktemp)
trap 'rm -f "$csv"' EXIT

# Prints and keeps the tables; the CSV has a first line with the machine, then one header.
bench() {
  local command=(bench --device cuda "$@" "${more[@]}") file=$results/gpu_$part
  {
    printf '\n%s\n\n' "\`chitu ${command[*]}\`"
    "$program" "${command[@]}" --csv "$csv"
  } | tee -a "$file.md"
  if [[ ! -s $file.csv ]]; then
    printf '# tools/gpu_tables.sh %s; %s; commit %s\n' "$part${more[*]:+ -- ${more[*]}}" "$(sed -n 's/^Machine: //p' "$file.md" | head -n 1)" \
      "${CHITU_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}" >"$file.csv"
    cat "$csv" >>"$file.csv"
  else
    tail -n +2 "$csv" >>"$file.csv"
  fi
}

# Differences are taken on few rows: while the CPU computes their truth, the GPU waits.
filled() { # MASK, or nothing
  bench --lengths 1K,4K,16K --tokens-per-call 32K --heads 16 --dim 128 --rows 32 "$@"
  bench --lengths 1K,4K,16K --tokens-per-call 32K --heads 32 --dim 64 --rows 32 "$@"
}
alone() {
  local turns=(--in-a-row 11 --runs 33 --rest 200 --rows 4)
  bench --lengths 1K,4K,16K --tokens-per-call 32K --heads 16 --dim 128 "${turns[@]}" "$@"
  bench --lengths 1K,4K,16K --tokens-per-call 32K --heads 32 --dim 64 "${turns[@]}" "$@"
  bench --lengths 16K --tokens-per-call 32K --heads 8 --dim 256 "${turns[@]}" "$@"
}
long() {
  bench --lengths 10K,100K --heads 16 --dim 128 --rows 16 "$@"
  bench --lengths 10K,100K --heads 32 --dim 64 --rows 16 "$@"
  bench --lengths 1M --heads 1 --dim 128 --rows 8 "$@"
  bench --lengths 1M --heads 1 --dim 64 --rows 8 "$@"
}
captured() {
  bench --input data/gpt_d128.safetensors "$@"
  bench --input data/gpt_d64.safetensors "$@"
}

for part in "${parts[@]}"; do
  [[ $part == filled || $part == alone || $part == long || $part == captured ]] || {
    echo "gpu_tables.sh: there is no part '$part'; the parts are filled, alone, long and captured" >&2
    exit 2
  }
  : >"$results/gpu_$part.md"
  : >"$results/gpu_$part.csv"
  "$part"
  "$part" --causal
done
