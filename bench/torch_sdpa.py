#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times this library against PyTorch's scaled_dot_product_attention on the CPU.

Both run in one process on the same tensors, in turn, so that a drift of the machine hits them alike. Quantisation is part of the
time of `chitu`. Run on a quiet machine:

    pip install torch==2.13.0 numpy
    cmake -S . -B build-shared -G Ninja -DBUILD_SHARED_LIBS=ON -DCHITU_CLI=OFF -DCHITU_TESTS=OFF && cmake --build build-shared
    bench/torch_sdpa.py --csv torch_sdpa.csv

Prints a Markdown table; the CSV has every run.
"""

import argparse
import csv
import ctypes
import os
import statistics
import time

