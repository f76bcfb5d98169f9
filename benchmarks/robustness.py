"""Clean and corrupted accuracy over seeds: LeNet-5 and MobileNetV2, with and without augmentation.

    python benchmarks/robustness.py OUT.jsonl IMAGES --weights WEIGHTS/mobilenetv2_100 \\
        --cases lenet lenet-augmented --seeds 0 1 2

Each run trains, chooses its best epoch on val, and is evaluated on test once, clean and corrupted.
One line of JSON a run is appended to OUT.jsonl; `--table` prints mean and spread by case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnft.host import name_processor

LENET = {
    "model.name": "lenet5",
    "model.pretrained": "false",
    "data.img_size": "64",
    "train.epochs": "40",
    "train.batch_size": "32",
}
NO_AUGMENTATION = {"augment.scale": "[1,1]", "augment.ratio": "[1,1]", "augment.hflip": "0.0"}
CASES: dict[str, dict[str, str]] = {
    "lenet": LENET | NO_AUGMENTATION,
    "lenet-augmented": LENET | {"augment.color_jitter": "0.4"},
    "lenet-device": LENET | {"augment.color_jitter": "0.4", "augment.device": "0.5"},
    "mobilenet": {"data.img_size": "96"},
    "mobilenet-device": {"data.img_size": "96", "augment.device": "0.5"},
}


def run(args: argparse.Namespace, case: str, seed: int) -> dict[str, Any]:
    """Train once, and evaluate on test."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"data: {{root: {args.root}}}\nmodel: {{name: 'local-dir:{args.weights}'}}\n"
            f"train: {{seed: {seed}}}\nrun: {{dir: {folder}/runs, name: one}}\n"
        )
        sets = [part for key, value in CASES[case].items() for part in ("--set", f"{key}={value}")]
        train = _mnft("train", str(config), "--json", *sets)
        started = time.perf_counter()
        test = _mnft(
            "eval", "--ckpt", f"{folder}/runs/one", "--split", "test", "--robustness", "--json"
        )
    return {
        "case": case,
        "seed": seed,
        "val": train["val_accuracy"],
        "train_seconds": train["seconds"],
        "eval_seconds": time.perf_counter() - started,
        "robustness": test["robustness"],
        "processor": name_processor(),
    }


def _mnft(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "mnft", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def show(path: Path) -> None:
    """Mean and standard deviation over seeds: all figures, and each corruption's."""
    groups = defaultdict(list)
    for result in map(json.loads, path.read_text().splitlines()):
        groups[result["case"]].append(result)

    def spread(values: list[float]) -> str:
        percent = [100 * value for value in values]
        deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
        return f"{statistics.mean(percent):.1f}{deviation}"

    def row(name: str, pick: Callable[[dict[str, Any]], float]) -> str:
        cells = [spread([pick(result) for result in results]) for results in groups.values()]
        return f"| {name} | {' | '.join(cells)} |"

    print(f"| | {' | '.join(f'{case}, n = {len(r)}' for case, r in groups.items())} |")
    print(f"|---|{'---|' * len(groups)}")
    print(row("val, clean", lambda r: r["val"]))
    print(row("test, clean", lambda r: r["robustness"]["clean"]["value"]))
    print(row("test, corrupted, mean", lambda r: r["robustness"]["mean"]))
    corruptions = next(iter(groups.values()))[0]["robustness"]["corruptions"]
    for number, corruption in enumerate(corruptions):
        print(
            row(
                corruption["name"],
                lambda r, number=number: r["robustness"]["corruptions"][number]["mean"],
            )
        )
    for key in ("train_seconds", "eval_seconds"):
        means = [statistics.mean(r[key] for r in results) for results in groups.values()]
        print(f"| {key} | {' | '.join(f'{mean:.0f}' for mean in means)} |")


def main() -> None:
    """Run the cases, or show what is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("root", nargs="?")
    parser.add_argument("--weights", help="folder of MobileNetV2's ImageNet weights")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.root:
        for seed in args.seeds:
            for case in args.cases:
                result = run(args, case, seed)
                with args.out.open("a") as stream:
                    stream.write(json.dumps(result) + "\n")
                mean, clean = result["robustness"]["mean"], result["robustness"]["clean"]["value"]
                print(case, seed, f"clean {clean:.3f} corrupted {mean:.3f}", flush=True)
    if args.table:
        show(args.out)


if __name__ == "__main__":
    main()
