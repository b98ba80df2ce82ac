#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds everything and runs every test: formatting, sizes, generated documents, the suites, the suites under sanitizers, the fuzz targets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/common.sh
source tools/common.sh

readonly fuzz_seconds=10 # of each target
fast=false
python_tests=(-m 'not slow')
for argument in "$@"; do
  case $argument in
    --fast) fast=true ;;
    --python) python_tests=() ;;
    -h | --help)
      cat <<'EOF'
./test.sh           installs what is missing (Debian, Ubuntu), builds, runs every test; under 13 minutes on two cores
./test.sh --fast    the same without sanitizers, fuzzing, the build of another project on this one (tests/install) and, where there is
                    no GPU, its kernels; under 4 minutes. What is left out is counted as skipped
./test.sh --python  all, with the slow tests of the Python package
It ends with a line "N passed, N failed, N skipped" and a status other than 0 if something failed.
EOF
      exit
      ;;
    *) fail "there is no argument '$argument'; there are --fast and --python" ;;
  esac
done

passed=0 failed=0 skipped=0
summary=()

# check NAME COMMAND...: something that is no test of ctest's.
check() {
  local name=$1
  shift
  say "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    summary+=("FAILED: $name")
  fi
}

skip() { # NAME REASON
  skipped=$((skipped + 1))
  summary+=("skipped: $1: $2")
}

# suite NAME FOLDER CTEST_ARGUMENT...
suite() {
  local name=$1 folder=$2 status=0 tests failures disabled unrun
  shift 2
  say "$name"
  rm -f "$folder/results.xml"
  ctest --test-dir "$folder" -j 2 --output-on-failure --no-tests=error --output-junit results.xml "$@" || status=$?
  [[ -s $folder/results.xml ]] || fail "$name: ctest left no results"
  number() { sed -n "/^\t$1=/{s/[^0-9]//g;p;q}" "$folder/results.xml"; }
  tests=$(number tests) failures=$(number failures) disabled=$(number disabled) unrun=$(number skipped)
  ((status == 0 || failures > 0)) || failures=1 # ctest failed in another way
  passed=$((passed + tests - failures - disabled - unrun)) failed=$((failed + failures)) skipped=$((skipped + disabled + unrun))
  summary+=("$name: $((100 * (tests - failures) / tests))% tests passed, $failures tests failed out of $tests")
}

# The Python package in a clean environment, by pytest.
python_suite() {
  local name="the Python package" status=0 tests failures unrun
  say "$name"
  rm -f build-python/results.xml
  tools/python.sh test "$@" || status=$?
  number() { sed -n "s/.*<testsuite [^>]*$1=\"\([0-9]*\)\".*/\1/p" build-python/results.xml 2>/dev/null; }
  tests=$(number tests) failures=$(($(number failures) + $(number errors))) unrun=$(number skipped)
  ((status == 0 || failures > 0)) || failures=1 # it was not installed, or pytest failed in another way
  passed=$((passed + ${tests:-1} - failures - ${unrun:-0})) failed=$((failed + failures)) skipped=$((skipped + ${unrun:-0}))
  summary+=("$name: $failures tests failed out of ${tests:-1}")
}

formatted() {
  git ls-files -z --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 clang-format-14 --dry-run --Werror
}
methods_are_current() { build/chitu methods --markdown | diff -u docs/methods.md -; }
figure_is_current() { tools/plot_peers.py bench/results/gpu_peers.csv | diff -q docs/figures/speed.svg -; }
# finished PID LOG: of a command in the background, whose output is shown if it fails.
finished() { wait "$1" || { cat "$2"; return 1; }; }

need_to_build
need git git - libgtest-dev python3 python3
if available clang-format-14; then need clang-format-14 clang-format-14; fi

cuda=-UCHITU_CUDA # as CMake finds nvcc
unit_tests=()
if $fast; then
  unit_tests=(-LE install)
  has_gpu || cuda=-DCHITU_CUDA=OFF
fi
configure build -DCMAKE_BUILD_TYPE=Release -DCHITU_TESTS=ON "$cuda"
cmake --build build

if command -v clang-format-14 >/dev/null; then
  check "formatting (clang-format 14)" formatted
else
  skip "formatting" "this distribution has no clang-format 14, and others format differently"
fi
check "no function in src/ over 80 lines, no file over 500" tools/check_sizes.py
check "src/cuda/sm90 holds what needs Hopper" tools/check_sm90.py
check "docs/figures/speed.svg is what tools/plot_peers.py draws" figure_is_current
check "docs/methods.md is what build/chitu methods --markdown prints" methods_are_current

# Two tests at a time, each with threads of its own: they must sleep, not spin, while they wait for each other.
export OMP_WAIT_POLICY=passive
suite "tests" build "${unit_tests[@]}" # those that need a GPU are skipped, counted, where there is none

if $fast; then
  skip "sanitizers" "--fast"
  skip "fuzzing" "--fast"
  skip "tests/install" "--fast"
  skip "the Python package" "--fast"
  [[ $cuda == -U* ]] || skip "GPU kernels" "--fast, and there is no GPU here"
else
  need clang++ clang - libomp-dev
  runtime=libclang-rt-$(clang++ -dumpversion | cut -d . -f 1)-dev
  if available "$runtime"; then need - "$runtime"; fi
  # With clang, which compiles sanitized code fastest, and so takes all of the library as well.
  configure build-sanitize --preset sanitize
  cmake --build build-sanitize --target tests/core/all tests/cli/all fuzz/all
  # The other parts measure, or build without the sanitizers anyway. What is left out here measures too (Pace), repeats what else runs, or
  # (NoSpace) forbids files to be written, which clang's OpenMP needs to start. It also keeps some memory of threads that it has ended.
  export LSAN_OPTIONS=suppressions=$PWD/tools/leaks.txt:print_suppressions=0
  for part in core cli; do
    suite "tests/$part under address and undefined-behaviour sanitizers" "build-sanitize/tests/$part" -E 'SameBitsOnEveryRun|second_half|NoSpaceLeavesNoOutput|Pace\.|WhileAnotherThreadCalls'
  done

  declare -A fuzzers # side by side: what they do is not measured
  for target in npy safetensors words; do
    mkdir -p "build-sanitize/corpus/$target"
    options=(-max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix=build-sanitize/ -verbosity=0)
    if [[ -f fuzz/$target.dict ]]; then options+=(-dict="fuzz/$target.dict"); fi
    "build-sanitize/fuzz/fuzz_$target" "${options[@]}" "build-sanitize/corpus/$target" "fuzz/seeds/$target" >"build-sanitize/fuzz_$target.log" 2>&1 &
    fuzzers[$target]=$!
  done
  for target in "${!fuzzers[@]}"; do
    check "fuzz_$target for $fuzz_seconds s" finished "${fuzzers[$target]}" "build-sanitize/fuzz_$target.log"
  done
fi

$fast || python_suite "${python_tests[@]}"

say "summary, after $SECONDS s"
printf '%s\n' "${summary[@]}"
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
