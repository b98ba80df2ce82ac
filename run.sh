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
                    captured and on normal tensors
./run.sh ARGUMENTS  the same, but prints what `build/chitu bench ARGUMENTS` does, for example:
                    ./run.sh --method exact,chitu --lengths 16K --heads 2 --dim 128 --causal
EOF
  exit
fi

need_to_build
configure build -DCMAKE_BUILD_TYPE=Release -DCHITU_TESTS=OFF
cmake --build build
say "build/chitu is ready; build/chitu --help tells what it does"

if (($#)); then
  exec build/chitu bench "$@"
fi
exec tools/bench_tables.sh
