#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All that needs a GPU: its tests, small ones of every method under compute-sanitizer, the timing table.
#   tools/gpu.sh [FOLDER [RESULTS]]    FOLDER: a build folder, build-gpu unless given; built first where it has no programs. Programs
#                                      that were built elsewhere need -DCHITU_STATIC=ON there.
#                                      RESULTS: where gpu_filled.md and gpu_filled.csv go, FOLDER unless given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build-gpu}
test=$folder/tests/gpu/gpu_test command_test=$folder/tests/gpu/gpu_command_test results=${2:-$folder}
export CHITU_PROGRAM=$PWD/$folder/chitu
[[ -x $test && -x $command_test && -x $CHITU_PROGRAM ]] || {
  cmake -S . -B "$folder" -G Ninja -DCHITU_CUDA=ON && cmake --build "$folder" --target gpu_test gpu_command_test chitu_cli
}

failures=0
"$CHITU_PROGRAM" doctor || failures=1
# The tests' own arithmetic on the CPU takes most of their time, so parts of them run side by side, and so do the sanitizers.
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
parts=8 jobs=()
for ((part = 0; part < parts; ++part)); do
  GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part OMP_NUM_THREADS=2 "$test" >"$logs/part$part" 2>&1 &
  jobs+=($!)
done
for ((part = 0; part < parts; ++part)); do
  wait "${jobs[part]}" || { failures=1; grep -v '^\[ *\(RUN\|OK\) ' "$logs/part$part"; }
done
cat "$logs"/part* | awk '/^\[  PASSED  \]/ {passed += $4} /^\[  SKIPPED \].*tests/ {skipped += $4} /^\[  FAILED  \].*listed below/ {failed += $4}
  END {printf "gpu_test: %d passed, %d failed, %d skipped\n", passed, failed, skipped}'
"$command_test" --gtest_brief=1 || failures=1
if command -v compute-sanitizer >/dev/null; then
  tools=(memcheck racecheck initcheck synccheck) sanitizers=()
  for tool in "${tools[@]}"; do
    timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" --gtest_brief=1 --gtest_filter='*GpuSmall*' >"$logs/$tool" 2>&1 &
    sanitizers+=($!)
  done
  for i in "${!tools[@]}"; do
    wait "${sanitizers[i]}" || failures=1
    printf '%s: ' "${tools[i]}"
    tail -n 2 "$logs/${tools[i]}"
  done
else
  echo "compute-sanitizer is not installed: not run"
fi
tools/gpu_tables.sh "$CHITU_PROGRAM" "$results" filled || failures=1
exit "$failures"
