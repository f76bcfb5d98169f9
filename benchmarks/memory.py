"""Memory of whole runs: `mnft train` at some batch sizes, in turn, and what the process takes.

    python benchmarks/memory.py IMAGES --model local-dir:WEIGHTS [--batch-sizes 32 64]
        [--precision bf16 fp32] [--rounds 3] [--epochs 2] [--tree OTHER]

The peak of all, and of the process's own (anonymous) memory alone: the rest is libraries and the
mapped store, which the kernel takes back when it needs them. Images per second are those of the
last epoch. --tree names another checkout of mnft, whose runs take turns with those of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def run(args: argparse.Namespace, tree: Path, size: int, precision: str, cache: str):
    """(GB, GB of its own, images per second) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"data: {{root: '{args.root}', store: '{cache}'}}\nmodel: {{name: '{args.model}'}}\n"
            f"train: {{batch_size: {size}, precision: {precision}, epochs: {args.epochs}}}\n"
            f"run: {{dir: '{folder}/runs', name: one, tensorboard: false}}\n"
        )
        command = [sys.executable, "-m", "mnft", "train", str(config)]
        # Python looks for mnft in the current folder first.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, cwd=tree, **quiet) as process:
            own = 0
            while process.poll() is None:
                try:
                    text = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:  # it has just ended
                    break
                found = dict(line.split(":", 1) for line in text.splitlines())
                if "RssAnon" in found:
                    own = max(own, int(found["RssAnon"].split()[0]))
                time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        lines = (Path(folder) / "runs/one/log.jsonl").read_text().splitlines()
    epochs = [e for e in map(json.loads, lines) if e["event"] == "epoch"]
    peak = max(epoch["peak_memory_mb"] for epoch in epochs)
    return peak / 1000, own * 1024 / 1e9, epochs[-1]["images_per_s"]


def main() -> None:
    """Run in turn and print the table."""
    from mnft.host import name_processor

    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tree", type=Path)
    args = parser.parse_args()
    args.root = str(Path(args.root).absolute())
    os.environ.pop("PYTHONPATH", None)
    trees = [HERE, *([args.tree.resolve()] if args.tree else [])]
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(args.rounds):
            for size in args.batch_sizes:
                for precision in args.precision:
                    for tree in trees:
                        result = run(args, tree, size, precision, cache)
                        found[size, precision, tree == HERE].append(result)
    print(f"{name_processor()}, {len(os.sched_getaffinity(0))} cores\n")
    print("| batch | precision | mnft | peak, GB | own, GB | images/s |\n|---|---|---|---|---|---|")
    for (size, precision, here), results in found.items():
        peaks, own, rates = zip(*results, strict=True)
        print(
            f"| {size} | {precision} | {'this' if here else 'other'} | {max(peaks):.1f} "
            f"| {max(own):.1f} | {statistics.median(rates):.1f} "
            f"({min(rates):.1f} to {max(rates):.1f}) |"
        )


if __name__ == "__main__":
    main()
