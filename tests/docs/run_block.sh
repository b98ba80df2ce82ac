#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run_block.sh SCRIPT REPOSITORY CHITU: runs a document's commands in a temporary folder that looks like the repository after ./run.sh.
set -euo pipefail
script=$1 repository=$2 chitu=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/build"
ln -s "$chitu" "$work/build/chitu"
ln -s "$repository/data" "$work/data"
cd "$work"
bash -euo pipefail -x "$script"
