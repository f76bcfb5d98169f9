"""Time to accuracy: whole processes, mnft against the textbook loop, in turn, on one machine.

    python benchmarks/race.py IMAGES --model local-dir:WEIGHTS [--rounds 2] [--freeze]

Each process starts cold but for the page cache; mnft's store is deleted before each of its runs,
unless --warm. Seconds run from the start of the process to the end of the epoch that reaches the
accuracy (mnft: to the line of log.jsonl, after the model is saved).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mnft.host import name_processor


def run_textbook(args: argparse.Namespace, seed: int) -> list[tuple[float, float]]:
    """(seconds, val accuracy) after each epoch."""
    command = [sys.executable, str(Path(__file__).with_name("textbook.py")), args.root]
    command += ["--model", args.model, "--epochs", str(args.epochs), "--seed", str(seed)]
    command += ["--freeze"] if args.freeze else []
    started = time.perf_counter()
    points = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            points.append((time.perf_counter() - started, json.loads(line)["val_accuracy"]))
    return points


def run_mnft(args: argparse.Namespace, seed: int) -> list[tuple[float, float]]:
    """(seconds, val accuracy) after the head stage and after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(args.cache or folder) / "cache"
        if not args.warm:
            shutil.rmtree(cache, ignore_errors=True)
        config = Path(folder) / "race.yaml"
        config.write_text(
            f"data: {{root: {args.root}, store: {cache}}}\nmodel: {{name: '{args.model}'}}\n"
            f"train: {{seed: {seed}}}\nrun: {{dir: {folder}/runs, name: race}}\n"
        )
        command = [sys.executable, "-m", "mnft", "train", str(config)]
        command += ["--set", "model.freeze=backbone"] if args.freeze else []
        for override in args.set:
            command += ["--set", override]
        log = Path(folder) / "runs" / "race" / "log.jsonl"
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        points: list[tuple[float, float]] = []
        while process.poll() is None:
            time.sleep(0.02)
            lines = log.read_text().splitlines() if log.exists() else []
            epochs = [json.loads(x) for x in lines if '"event": "epoch"' in x and x.endswith("}")]
            now = time.perf_counter() - started
            points += [(now, epoch["val_accuracy"]) for epoch in epochs[len(points) :]]
        if process.returncode:
            assert process.stderr
            raise SystemExit(process.stderr.read().decode())
        print(f"mnft: whole process {time.perf_counter() - started:.1f} s", flush=True)
        if args.test:
            command = [sys.executable, "-m", "mnft", "eval", "--split", "test", "--json"]
            for flip in ([], ["--flip"]):
                where = ["--ckpt", f"{folder}/runs/race", "-o", f"{folder}/eval{len(flip)}"]
                done = subprocess.run([*command, *where, *flip], capture_output=True, check=True)
                found = json.loads(done.stdout)
                print(f"mnft: test {found['accuracy']:.4f} {' '.join(flip)}", flush=True)
    return points


def first(points: list[tuple[float, float]], accuracy: float) -> float | None:
    """Seconds until the accuracy is reached, or None."""
    return next((seconds for seconds, reached in points if reached >= accuracy), None)


def main() -> None:
    """Run both in turn and print the points and the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=6, help="of the textbook loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--warm", action="store_true", help="keep the store between runs")
    parser.add_argument("--cache", help="folder of the store, for --warm")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.90, 0.93])
    parser.add_argument("--set", action="append", default=[], help="for mnft train")
    parser.add_argument("--test", action="store_true", help="judge mnft's models on test")
    parser.add_argument("--only", choices=["mnft", "textbook"])
    args = parser.parse_args()
    args.root = str(Path(args.root).absolute())
    print(name_processor(), flush=True)
    for seed in range(args.rounds):
        for name, run in (("textbook", run_textbook), ("mnft", run_mnft)):
            if args.only in (None, name):
                points = run(args, seed)
                shown = ", ".join(f"{s:.1f} s {a:.2%}" for s, a in points)
                print(f"round {seed + 1} {name}: {shown}", flush=True)
                for target in args.targets:
                    print(f"round {seed + 1} {name}: {target:.0%} after {first(points, target)}")


if __name__ == "__main__":
    main()
