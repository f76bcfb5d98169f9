"""Clean and corrupted accuracy over seeds: LeNet-5 and MobileNetV2, with and without augmentation.

    python benchmarks/robustness.py FOLDER IMAGES --weights WEIGHTS/mobilenetv2_100 \\
        --cases lenet lenet-augmented --seeds 0 1 2 --evaluate --table

Each run trains in FOLDER, and chooses its best epoch on val; `--evaluate` judges it on test once,
clean and corrupted. What is there already is not made again; `--table` prints mean and spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnft.data.batches.batch import Batch
from mnft.data.corruptions import CORRUPTIONS
from mnft.evaluation.checkpoint import load_settings, open_checkpoint
from mnft.evaluation.images import load_image_set
from mnft.evaluation.outputs import compute_image_outputs
from mnft.evaluation.robustness import measure
from mnft.evaluation.robustness.batches import CorruptedBatches
from mnft.host import name_processor
from mnft.preprocessing import Preprocessing
from mnft.reporter import SILENT

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


def train(args: argparse.Namespace, case: str, seed: int) -> None:
    """Train once, unless the run is there already."""
    folder = args.folder / f"{case}-{seed}"
    if folder.exists():
        return
    config = args.folder / f"{case}-{seed}.yaml"
    config.write_text(
        f"data: {{root: {args.root}}}\nmodel: {{name: 'local-dir:{args.weights}'}}\n"
        f"train: {{seed: {seed}}}\nrun: {{dir: {args.folder}, name: {case}-{seed}}}\n"
    )
    sets = [part for key, value in CASES[case].items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "mnft", "train", str(config), "--json", *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    (folder / "answer.json").write_text(done.stdout)


def evaluate(args: argparse.Namespace, case: str, seed: int) -> None:
    """Evaluate a run on test as `mnft eval --robustness` does, unless its figures are there."""
    folder = args.folder / f"{case}-{seed}"
    if (folder / "robustness.json").exists():
        return
    opened = open_checkpoint(folder)
    config = load_settings(opened, [])[0]
    images = load_image_set(opened, None, "test", SILENT)
    how: Any = {"device": "cpu", "flip": False, "reporter": SILENT}
    clean = compute_image_outputs(opened.bundle, images, config.eval, **how)
    found = measure.measure_robustness(opened.bundle, images, clean, config, batch_size=None, **how)
    (folder / "robustness.json").write_text(json.dumps(found.as_record()))
    print(case, seed, f"clean {found.clean.value:.4f} corrupted {found.mean:.4f}", flush=True)


_made: dict[Preprocessing, list[Batch]] = {}


def share_batches(*arguments: Any) -> list[Batch]:
    """Take the place of `CorruptedBatches`: models of one input share the corrupted images.

    They take longer to make than a LeNet-5 takes to judge them.
    """
    preprocessing = arguments[2]
    if preprocessing not in _made:
        _made[preprocessing] = list(CorruptedBatches(*arguments))
    return _made[preprocessing]


def show(folder: Path) -> None:
    """Mean and standard deviation over seeds: all figures, and each corruption's."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("*/robustness.json")):
        case, seed = path.parent.name.rsplit("-", 1)
        train = json.loads((path.parent / "answer.json").read_text())
        groups[case].append({"seed": seed, "train": train, **json.loads(path.read_text())})

    def spread(values: list[float]) -> str:
        percent = [100 * value for value in values]
        deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
        return f"{statistics.mean(percent):.1f}{deviation}"

    def row(name: str, pick: Callable[[dict[str, Any]], float]) -> str:
        cells = [spread([pick(result) for result in groups[case]]) for case in cases]
        return f"| {name} | {' | '.join(cells)} |"

    cases = [case for case in CASES if case in groups]
    print(f"| | {' | '.join(f'{case}, n = {len(groups[case])}' for case in cases)} |")
    print(f"|---|{'---|' * len(cases)}")
    print(row("val, clean", lambda r: r["train"]["val_accuracy"]))
    print(row("test, clean", lambda r: r["clean"]["value"]))
    print(row("test, corrupted, mean", lambda r: r["mean"]))
    for number, corruption in enumerate(CORRUPTIONS):
        name = corruption.name
        print(row(name, lambda r, number=number: r["corruptions"][number]["mean"]))
    for case in cases:
        print(case, [(r["seed"], r["clean"]["value"], r["mean"]) for r in groups[case]])


def main() -> None:
    """Train, evaluate or show what is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("root", nargs="?")
    parser.add_argument("--weights", help="folder of MobileNetV2's ImageNet weights")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    setattr(measure, "CorruptedBatches", share_batches)  # noqa: B010 - mypy knows only a class
    for seed in args.seeds if args.root else []:
        for case in args.cases:
            train(args, case, seed)
            if args.evaluate:
                evaluate(args, case, seed)
    if args.table:
        print(name_processor())
        show(args.folder)


if __name__ == "__main__":
    main()
