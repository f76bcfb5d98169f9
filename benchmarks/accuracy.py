"""Accuracy of recipes over seeds: train with the command line, choose on val, judge on test once.

    python benchmarks/accuracy.py OUT.jsonl IMAGES --model local-dir:WEIGHTS --seeds 0 1 2 \\
        [--name auto] [--set KEY=VALUE ...]

One line of JSON a run is appended to OUT.jsonl; `--table` prints mean and spread by name.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from mnft.host import name_processor


def run(args: argparse.Namespace, seed: int) -> dict[str, object]:
    """Train and evaluate once."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"data: {{root: {args.root}}}\nmodel: {{name: '{args.model}'}}\n"
            f"train: {{seed: {seed}}}\nrun: {{dir: {folder}/runs, name: one}}\n"
        )
        overrides = [part for override in args.set for part in ("--set", override)]
        used = _cpu_seconds()
        train = _mnft("train", str(config), "--json", *overrides)
        result = {"name": args.name, "model": args.model.rsplit("/", 1)[-1], "seed": seed}
        result |= {key: train[key] for key in ("best_epoch", "val_accuracy", "seconds")}
        result["cpu_seconds"] = round(_cpu_seconds() - used, 1)
        result |= {"set": args.set, "processor": name_processor()}
        lines = (Path(folder) / "runs/one/log.jsonl").read_text().splitlines()
        epochs = [line for line in map(json.loads, lines) if line["event"] == "epoch"]
        result["curve"] = [round(epoch["val_accuracy"], 4) for epoch in epochs]
        result["train_curve"] = [round(epoch["train_accuracy"], 4) for epoch in epochs]
        if not args.val_only:
            test = _mnft("eval", "--ckpt", f"{folder}/runs/one", "--split", "test", "--json")
            result |= {"test_accuracy": test["accuracy"], "test_macro_f1": test["macro"]["f1"]}
    return result


def _mnft(*words: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "mnft", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def show(path: Path) -> None:
    """Mean, spread and number of seeds by model and name."""
    groups = defaultdict(list)
    for line in path.read_text().splitlines():
        result = json.loads(line)
        groups[result["model"], result["name"]].append(result)
    print("| model | recipe | n | val | test | seconds | of CPU |\n|---|---|---|---|---|---|---|")
    for (model, name), results in groups.items():
        cells = [
            _spread([r.get(key) for r in results]) for key in ("val_accuracy", "test_accuracy")
        ]
        seconds = statistics.mean(r["seconds"] for r in results)
        cpu = statistics.mean(r.get("cpu_seconds", float("nan")) for r in results)
        cells += [f"{seconds:.0f}", f"{cpu:.0f}"]
        print(f"| {model} | {name} | {len(results)} | {' | '.join(cells)} |")


def _spread(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the seeds, or show what is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("root", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--name", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--val-only", action="store_true", help="leave the test split alone")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.root:
        for seed in args.seeds:
            result = run(args, seed)
            with args.out.open("a") as stream:
                stream.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
    if args.table:
        show(args.out)


if __name__ == "__main__":
    main()
