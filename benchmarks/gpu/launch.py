"""mnft with one thing changed that no config can change; used by the other scripts.

    python benchmarks/gpu/launch.py --gpu-memory-mb 2000 -- train CONFIG
    torchrun --nproc-per-node 2 benchmarks/gpu/launch.py --one-gpu -- train CONFIG

Without a limit or a shared GPU it is `python -m mnft`.
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import acceptance  # noqa: F401 - makes this checkout the mnft that runs


def main() -> None:
    """Change it, and run mnft in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-memory-mb", type=float, help="that the process may take of a GPU")
    parser.add_argument("--address-space-mb", type=float, help="that it may take besides imports")
    parser.add_argument(
        "--one-gpu",
        action="store_true",
        help="all processes of torchrun on the first GPU, over gloo: NCCL refuses that",
    )
    parser.add_argument("command", nargs="+", help="of mnft, after --")
    args = parser.parse_args()
    if args.gpu_memory_mb is not None:
        limit_gpu_memory(args.gpu_memory_mb)
    if args.address_space_mb is not None:
        limit_address_space(args.address_space_mb)
    if args.one_gpu:
        share_one_gpu()
    sys.argv = ["mnft", *args.command]
    runpy.run_module("mnft", run_name="__main__", alter_sys=True)


def limit_gpu_memory(megabytes: float) -> None:
    """Let torch's allocator fail above a limit, as on a smaller GPU."""
    import torch

    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(megabytes * 1e6 / total, index)


def limit_address_space(megabytes: float) -> None:
    """Let every allocation of this process fail above a limit."""
    import resource

    import parts  # noqa: F401 - what mnft imports takes memory, and is not what is limited

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(megabytes * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def share_one_gpu() -> None:
    """Make each process believe that it is alone on its machine, and gloo carry everything."""
    import torch.distributed as dist

    host, join = socket.gethostname(), dist.init_process_group

    def join_over_gloo(_backend: str | None = None, **options: Any) -> None:
        join("gloo", **options)

    socket.gethostname = lambda: f"{host}-{os.environ['RANK']}"
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    dist.init_process_group = join_over_gloo


if __name__ == "__main__":
    main()
