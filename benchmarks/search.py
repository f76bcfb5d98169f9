"""What `mnft search` gains over the default, over a grid, and over Optuna around a textbook's loop.

    python benchmarks/search.py OUT IMAGES WEIGHTS WEIGHTS ... [--size 160] [--epochs 5]

Folders of weights (timm's `local-dir:`) are the models to choose from, the first is the default.
IMAGES has `train/` and `val/`, which are split anew; a `test/` is not looked at. Random search
runs first; grid search gets as many trials, and the Optuna script as much of the processor's
time (`--cpu-seconds` overrides it). Each method's choice, and
the default, are then trained with three seeds that no method has seen: only those figures are
compared, since the figure that chose a trial flatters it. What was done is kept in OUT and not
repeated. `--table` prints it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mnft.host import name_processor

SEEDS = (11, 12, 13)
RATES, MIXUP = {"low": 3e-4, "high": 3e-3, "log": True}, [0, 0.2]
# The same keys with as many values as give 12 points with three models.
GRID_RATES = [6e-4, 1.7e-3]
TEXTBOOK = Path(__file__).parent / "search_textbook.py"


def main() -> None:
    """Run what OUT lacks, in order, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="*")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--cpu-seconds", type=float, help="for the Optuna script")
    parser.add_argument("--table", action="store_true", help="print what OUT holds")
    args = parser.parse_args()
    args.out = args.out.resolve()
    if not args.table:
        compare(args)
    print_table(args.out)


def compare(args: argparse.Namespace) -> None:
    """Search with each method, then train what each chose with fresh seeds."""
    args.out.mkdir(parents=True, exist_ok=True)
    images = link_splits(args)
    models = [f"local-dir:{folder.resolve()}" for folder in args.weights]
    base: dict[str, Any] = {
        "data": {"root": str(images), "img_size": args.size, "store": str(args.out / "store")},
        "model": {"name": models[0]},
        "train": {"epochs": args.epochs},
    }
    space = {"model.name": models, "optim.lr": RATES, "augment.mixup": MIXUP}
    random = {"method": "random", "trials": args.trials, "seeds": 2, "rungs": [1], "space": space}
    best, cpu_seconds = search(args.out, "random", base, random)
    grid_space = space | {"optim.lr": GRID_RATES}
    grid = random | {"method": "grid", "space": grid_space}
    of_grid, _ = search(args.out, "grid", base, grid)
    textbook = once(args.out / "textbook.json", lambda: search_textbook(args, images, cpu_seconds))
    configs = {"default": base, "random": best, "grid": of_grid}
    for seed in SEEDS:
        for name, config in configs.items():
            once(args.out / f"{name}-{seed}.json", lambda c=config, s=seed: train(args.out, c, s))
        once(
            args.out / f"textbook-{seed}.json",
            lambda s=seed: run_textbook(
                args, images, "train", "--seed", s, "--point", json.dumps(textbook["point"])
            ),
        )


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement that is taken only if its file is not there."""
    if not path.exists():
        found: dict[str, Any] = {"load": os.getloadavg()[0], "processor": name_processor()}
        started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        found |= measure()
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        found["wall"] = time.perf_counter() - started
        found["cpu"] = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        path.write_text(json.dumps(found, indent=1))
        print(path.stem, json.dumps(found)[:300], flush=True)
    return json.loads(path.read_text())


def link_splits(args: argparse.Namespace) -> Path:
    """Train and val pooled and split anew by content, two fifths for val; test is left out."""
    folder = args.out / "images"
    for of_class in sorted((args.images / "train").iterdir()):
        pooled = [*of_class.iterdir(), *(args.images / "val" / of_class.name).iterdir()]
        pooled.sort(key=lambda path: hashlib.sha256(path.read_bytes()).digest())
        for index, path in enumerate(pooled):
            split = "val" if index < len(pooled) * 2 // 5 else "train"
            link = folder / split / of_class.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return folder


def search(
    out: Path, name: str, base: dict[str, Any], section: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """Run `mnft search`; the config that it writes, and the processor time that it took."""
    config = out / f"search_{name}.yaml"
    config.write_text(yaml.safe_dump(base | {"search": section | {"name": name}}))

    def measure() -> dict[str, Any]:
        mnft(out, "search", str(config))
        with (out / "searches" / name / "trials.csv").open() as file:
            return {"trials": list(csv.DictReader(file))}

    seconds = once(out / f"search-{name}.json", measure).get("cpu", 0.0)
    return yaml.safe_load((out / "searches" / name / "best.yaml").read_text()), seconds


def train(out: Path, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train a config with another seed; figures of its best epoch."""
    path = out / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    result = mnft(
        out,
        "train",
        str(path),
        "--json",
        "--set",
        f"train.seed={seed}",
        "--set",
        "run.name=",
        "--set",
        f"run.dir={out / 'runs'}",
    )
    found = json.loads(result)
    return {key: found[key] for key in ("val_accuracy", "best_epoch", "seconds")}


def mnft(out: Path, *words: str) -> str:
    """Run a command of mnft; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mnft", *words],
        cwd=out,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def search_textbook(args: argparse.Namespace, images: Path, seconds: float) -> dict[str, Any]:
    """The Optuna script, with as much of the processor as random search took."""
    given = args.cpu_seconds or seconds
    return run_textbook(args, images, "search", "--cpu-seconds", given)


def run_textbook(args: argparse.Namespace, images: Path, *words: object) -> dict[str, Any]:
    """Run the Optuna script; the JSON that it prints."""
    command = [sys.executable, TEXTBOOK, words[0], images, *args.weights, "--size", args.size]
    command += ["--epochs", args.epochs, *words[1:]]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def print_table(out: Path) -> None:
    """Val accuracy of three fresh seeds of each method's choice, and what finding it took."""
    print(
        f"{'method':10} {'trials':>6} {'cpu min':>8} {'chosen at':>10} {'mean':>6} {'sd':>5}  seeds"
    )
    for name in ("default", "textbook", "grid", "random"):
        found = [json.loads((out / f"{name}-{seed}.json").read_text()) for seed in SEEDS]
        reached = [100 * one["val_accuracy"] for one in found]
        spent, count, chosen = "", "", ""
        if name == "textbook":
            method = json.loads((out / "textbook.json").read_text())
            count, chosen = str(method["trials"]), f"{100 * method['value']:.2f}"
            spent = f"{method['cpu'] / 60:.1f}"
        elif name != "default":
            method = json.loads((out / f"search-{name}.json").read_text())
            count, spent = str(len(method["trials"])), f"{method['cpu'] / 60:.1f}"
            result = json.loads((out / "searches" / name / "result.json").read_text())
            chosen = f"{100 * result['mean']:.2f}"
        listed = " ".join(f"{value:.2f}" for value in reached)
        print(
            f"{name:10} {count:>6} {spent:>8} {chosen:>9} {statistics.mean(reached):6.2f} "
            f"{statistics.stdev(reached):5.2f}  {listed}"
        )


if __name__ == "__main__":
    main()
