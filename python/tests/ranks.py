# SPDX-License-Identifier: Apache-2.0
"""Two processes of torch.distributed on the CPU."""

import os
import subprocess
import sys
import textwrap

_HEAD = """
import sys, torch, torch.distributed as dist
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
"""


def run(code, folder):
    """Runs `code` in both, with `rank` and `dist`; raises with what they printed if one fails."""
    store = os.path.join(folder, "store")
    program = _HEAD + textwrap.dedent(code) + "\ndist.barrier()\ndist.destroy_process_group()\n"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(rank), store], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for rank in range(2)]
    try:
        texts = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
