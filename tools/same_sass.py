#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the GPU's machine code of two builds, kernel by kernel, whatever the kernels are called.

  tools/same_sass.py [--parameters] BEFORE AFTER
    BEFORE, AFTER   libraries or object files, build/libchitu.a
    --parameters    where a kernel's parameters lie does not count

Prints the kernels that are in one build only, paired where their sizes are closest, and exits with 1 if there are any. A change that only
moves or renames leaves none.
"""
import collections
import re
import subprocess
import sys


def kernels(path, any_parameters):
    """The instructions of each kernel, without addresses and encodings: {instructions: [names]}."""
    text = subprocess.run(["cuobjdump", "-sass", path], check=True, capture_output=True, text=True).stdout
    if any_parameters:
        text = re.sub(r"c\[0x0\]\[[^\]]*\]", "c[0x0][]", text)
    found = collections.defaultdict(list)
    for part in re.split(r"^\s*Function : ", text, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        found[tuple(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?;)", body, flags=re.M))].append(name)
    return found


def demangled(name):
    return subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()


def main():
    arguments = sys.argv[1:]
    any_parameters = "--parameters" in arguments
    paths = [a for a in arguments if a != "--parameters"]
    if len(paths) != 2:
        sys.exit(__doc__.strip())
    before, after = (kernels(path, any_parameters) for path in paths)
    missing, added = [], []
    for body in before.keys() | after.keys():
        old, new = before.get(body, []), after.get(body, [])
        missing += [(body, name) for name in old[len(new):]]
        added += [(body, name) for name in new[len(old):]]
    total = sum(len(names) for names in before.values())
    print(f"{total - len(missing)} of {total} kernels have the same machine code")
    for body, name in sorted(missing, key=lambda x: x[1]):
        print(f"- {len(body):6} instructions  {demangled(name)}")
    for body, name in sorted(added, key=lambda x: x[1]):
        print(f"+ {len(body):6} instructions  {demangled(name)}")
    return 1 if missing or added else 0


sys.exit(main())
