# SPDX-License-Identifier: Apache-2.0
"""python -m chitu_attention: the chitu command."""

import os
import sys


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chitu")
    if not os.path.exists(path):
        sys.exit("chitu: error: this installation was built without the command; install libcli11-dev, libfmt-dev and nlohmann-json3-dev "
                 "(Debian's names), then install chitu-attention again")
    os.execv(path, ["chitu", *sys.argv[1:]])


if __name__ == "__main__":
    main()
