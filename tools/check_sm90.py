#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists files of src/cuda/sm90 that any GPU could share, and fails if there are any.

A file belongs there if its code, comments aside, uses what only Hopper has: wgmma, bulk and tensor copies, mbarriers, setmaxnreg, stmatrix;
or the words of src/cuda for them. So does one without device code of its own that includes such a file (an instance, the table that starts
them), a header whose source belongs there, and the plan of the main loop's shared memory and registers.
"""

import pathlib
import re
import sys

HOPPER = re.compile(
    r"wgmma|mbarrier|setmaxnreg|stmatrix|CUtensorMap|\btensor_(copy|map)\b|\bbulk_copy\b|\bbarrier_(init|try|wait|arrive|expect)\w*"
    r"|\b(take|give)_registers\b|\bstore_matrix\b|cp\.async\.bulk",
    re.IGNORECASE,
)
PLANS = {"config.cuh", "kernels.h", "kernels.cu"}

def main():
    root = pathlib.Path(__file__).resolve().parent.parent / "src"
    folder = root / "cuda" / "sm90"
    sources = {path: path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}
    includes = {path: [root / name for name in re.findall(r'^#include "([^"]+)"', source, re.M)] for path, source in sources.items()}
    # Instructions lie in strings, so these stay; comments do not.
    code = {path: re.sub(r"//[^\n]*|^#include[^\n]*", "", source, flags=re.M) for path, source in sources.items()}
    belongs = {path for path in sources if HOPPER.search(code[path]) or path.name in PLANS}
    while True:
        more = {path for path in sources if not re.search("__device__|__global__", code[path]) and belongs & set(includes[path])}
        more |= {path for path in sources if path.suffix == ".h" and {path.with_suffix(".cu"), path.with_suffix(".cpp")} & belongs}
        if more <= belongs:
            break
        belongs |= more
    strangers = [path for path in sources if path not in belongs]
    for path in strangers:
        print(f"{path.relative_to(root.parent)}: nothing in it needs Hopper; it has room in src/cuda")
    if not sources:
        sys.exit("check_sm90.py: src/cuda/sm90 has no files")
    print(f"{len(belongs)} of {len(sources)} files belong to sm90")
    sys.exit(bool(strangers))

if __name__ == "__main__":
    main()
