#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the figures in docs/figures: speed.svg from the committed run of a GPU against others, accuracy.svg by build/chitu on this machine
# (./run.sh builds it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/plot_peers.py bench/results/gpu_peers.csv >docs/figures/speed.svg
build/chitu accuracy --data all --plot docs/figures/accuracy.svg
