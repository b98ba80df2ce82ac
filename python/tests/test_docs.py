# SPDX-License-Identifier: Apache-2.0
"""The programs in docs/python.md run."""

import os
import re
import subprocess
import sys

import pytest

PAGE = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "python.md")
with open(PAGE, encoding="utf-8") as file:
    PROGRAMS = re.findall(r"^```python\n(.*?)^```", file.read(), re.M | re.S)


def test_there_are_programs():
    assert len(PROGRAMS) >= 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program):
    for module in re.findall(r"^import (\w+)", program, re.M):
        pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
