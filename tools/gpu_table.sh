#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The timing table of a GPU: every method at 1K, 4K and 16K tokens, 32768 tokens x 2048 channels a call, dim 128 and 64, causal or not.
#   tools/gpu_table.sh PROGRAM RESULTS [BENCH_ARGUMENT...]    PROGRAM: chitu; RESULTS: the folder for gpu_bench.md and gpu_bench.csv;
#                                                             the arguments go to each `chitu bench`: --method chitu, --dtype f16
set -euo pipefail
program=$1 results=$2
shift 2
part=$(mktemp)
trap 'rm -f "$part"' EXIT
: >"$results/gpu_bench.md"
: >"$results/gpu_bench.csv"

# Prints and keeps the tables; the CSV has one first line with the machine, then one header.
bench() {
  printf '\n%s\n\n' "\`chitu bench $*\`"
  "$program" bench "$@" --csv "$part"
}
for heads_dim in '16 128' '32 64'; do
  read -r heads dim <<<"$heads_dim"
  for mask in '' --causal; do
    # The truth on few rows: the CPU works on it while the GPU waits.
    # shellcheck disable=SC2086 # no mask is no word
    bench --device cuda --lengths 1K,4K,16K --tokens-per-call 32K --heads "$heads" --dim "$dim" $mask --rows 32 "$@" |
      tee -a "$results/gpu_bench.md"
    if [[ ! -s $results/gpu_bench.csv ]]; then
      printf '# tools/gpu_table.sh %s; %s; commit %s\n' "$*" "$(sed -n 's/^Machine: //p' "$results/gpu_bench.md")" \
        "${CHITU_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}" >"$results/gpu_bench.csv"
      cat "$part" >>"$results/gpu_bench.csv"
    else
      tail -n +2 "$part" >>"$results/gpu_bench.csv"
    fi
  done
done
