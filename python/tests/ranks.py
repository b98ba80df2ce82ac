# SPDX-License-Identifier: Apache-2.0
"""Some processes of torch.distributed on the CPU."""

import os
import subprocess
import sys
import textwrap

_HEAD = """
import sys, torch, torch.distributed as dist
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=int(sys.argv[3]))
"""


def outcome(code, folder, size=2):
    """Runs `code` in all, with `rank` and `dist`: (exit status, what it printed) of each."""
    store = os.path.join(folder, "store")
    program = _HEAD + textwrap.dedent(code) + "\ndist.barrier()\ndist.destroy_process_group()\n"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(rank), store, str(size)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for rank in range(size)]
    try:
        texts = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, texts)]


def run(code, folder, size=2):
    """The same; raises with what they printed if one fails."""
    results = outcome(code, folder, size)
    assert all(status == 0 for status, _ in results), "\n".join(text for _, text in results)
