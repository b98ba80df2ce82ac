#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All that needs a GPU: its tests, small ones of every method under compute-sanitizer, the timing table.
#   tools/gpu.sh [FOLDER [RESULTS]]    FOLDER: a build folder, build-gpu unless given; built first where it has no programs.
#                                      RESULTS: where gpu_attention.csv goes, FOLDER unless given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build-gpu}
test=$folder/tests/gpu/gpu_test bench=$folder/bench/gpu_attention results=${2:-$folder}
[[ -x $test && -x $bench ]] || { cmake -S . -B "$folder" -G Ninja -DCHITU_CUDA=ON && cmake --build "$folder" --target gpu_test gpu_attention; }

failures=0
nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader
"$test" --gtest_brief=1 || failures=1
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    printf '%s: ' "$tool"
    timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" --gtest_brief=1 --gtest_filter='*GpuSmall*' |
      tail -n 2 || failures=1
  done
else
  echo "compute-sanitizer is not installed: not run"
fi
"$bench" "$results/gpu_attention.csv" || failures=1
exit "$failures"
