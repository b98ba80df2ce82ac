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
for program in "$test" "$command_test"; do "$program" --gtest_brief=1 || failures=1; done
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    printf '%s: ' "$tool"
    timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" --gtest_brief=1 --gtest_filter='*GpuSmall*' |
      tail -n 2 || failures=1
  done
else
  echo "compute-sanitizer is not installed: not run"
fi
tools/gpu_tables.sh "$CHITU_PROGRAM" "$results" filled || failures=1
exit "$failures"
