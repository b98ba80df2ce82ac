#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds ChituAttention and prints its speed and accuracy on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tools/common.sh
source tools/common.sh

if [[ ${1-} == -h || ${1-} == --help ]]; then
  cat <<'EOF'
./run.sh            installs what is missing (Debian, Ubuntu), builds build/chitu, prints speed and accuracy of every method on
                    captured and on normal tensors, each table as soon as it is measured
./run.sh ARGUMENTS  the same, but prints what `build/chitu bench ARGUMENTS` does, for example:
                    ./run.sh --method exact,chitu --lengths 16K --heads 2 --dim 128 --causal
./run.sh --cuda ... compiles the GPU kernels, which takes minutes, even where there is no GPU; otherwise they are compiled where there
                    is one, and nvcc of CUDA 13
./run.sh --python   installs the Python package in a virtual environment, build-python/example, and prints what a few lines of Python do
EOF
  exit
fi

if [[ ${1-} == --python ]]; then
  (($# == 1)) || fail "--python takes no more arguments"
  exec tools/python.sh example
fi

if [[ ${1-} == --cuda ]]; then
  shift
  cuda=-DCHITU_CUDA=ON
elif has_gpu; then
  cuda=-UCHITU_CUDA # as CMake finds nvcc
else
  cuda=-DCHITU_CUDA=OFF
  say "there is no GPU here, so its kernels are not compiled (./run.sh --cuda compiles them all the same)"
fi

need_to_build
configure build -DCMAKE_BUILD_TYPE=Release -DCHITU_TESTS=OFF "$cuda"
cmake --build build
say "build/chitu is ready after $SECONDS s; build/chitu --help tells what it does, and ./run.sh --python installs it for Python"

if (($#)); then
  exec build/chitu bench "$@"
fi
exec tools/bench_tables.sh
