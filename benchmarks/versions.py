"""Two versions of mnft, trained in turn: images a second, seconds to the first update, memory.

    git worktree add /tmp/before aa876f8
    python benchmarks/versions.py before=/tmp/before after=. --images IMAGES --weights WEIGHTS

IMAGES is an image folder with train/ and val/, WEIGHTS a folder of timm model folders. Each run is
a process of its own with the recipe of its version; rounds alternate between the versions, so that
all see the same state of the machine. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = {
    "MobileNetV2 1.0": ["model.name=local-dir:{weights}/mobilenetv2_100", "train.batch_size=32"],
    "MobileNetV3-Small 0.75": [
        "model.name=local-dir:{weights}/tf_mobilenetv3_small_075",
        "train.batch_size=32",
    ],
    "LeNet-5": ["model.name=lenet5", "model.pretrained=false", "data.img_size=64"],
}
FIGURES = {"images/s": "{:,.1f}", "first update s": "{:.2f}", "peak MB": "{:,.0f}"}

# Says when the first update is done, whichever version of mnft makes it.
HOOKED = """
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
path, done = sys.argv[1], []
def first(*_):
    if not done:
        done.append(open(path, "w").write(str(time.time())))
register_optimizer_step_post_hook(first)
sys.argv = ["mnft", *sys.argv[2:]]
from mnft.cli.app import main
main()
"""


def link_some(source: Path, target: Path, per_class: int) -> None:
    """An image folder of links to the first images of each class."""
    for split, count in (("train", per_class), ("val", max(1, per_class // 4))):
        for folder in sorted((source / split).iterdir()):
            to = target / split / folder.name
            to.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (to / path.name).symlink_to(path.resolve())


def run(version: Path, folder: Path, settings: list[str], epochs: int) -> dict[str, float]:
    """One training: the median of its epochs but the first, and what its process took."""
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "run.yaml"
        config.write_text(f"data: {{root: {folder}}}\nrun: {{dir: {place}, name: run}}\n")
        # No head stage, whose updates of the head would be the first.
        settings = [*settings, "train.stages=[finetune]", f"train.epochs={epochs}"]
        command = [sys.executable, "-c", HOOKED, f"{place}/first", "train", str(config)]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, "PYTHONPATH": str(version), "MNFT_CACHE": f"{folder}-cache"}
        started = time.time()
        done = subprocess.run(
            command, env=environment, cwd=version, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{version}: {done.stderr}")
        first = float(Path(place, "first").read_text()) - started
        log = [json.loads(line) for line in Path(place, "run/log.jsonl").read_text().splitlines()]
    rows = [entry for entry in log if entry["event"] == "epoch"]
    return {
        "images/s": statistics.median(row["images_per_s"] for row in rows[1:]),
        "first update s": first,
        "peak MB": rows[-1]["peak_memory_mb"],
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="NAME=CHECKOUT")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="models whose names contain this")
    args = parser.parse_args()
    versions = dict(text.split("=", 1) for text in args.versions)
    versions = {name: Path(path).resolve() for name, path in versions.items()}
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{processor()}; Python {platform.python_version()}; load before: {load}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        link_some(args.images, folder, args.per_class)
        for model, settings in MODELS.items():
            if args.only not in model:
                continue
            settings = [text.format(weights=args.weights.resolve()) for text in settings]
            for version in versions.values():  # the store and the page cache
                run(version, folder, settings, 1 + 1)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
            for _ in range(args.rounds):
                for name, version in versions.items():
                    found[name].append(run(version, folder, settings, args.epochs))
            for figure, text in FIGURES.items():
                cells = []
                medians = []
                for name in versions:
                    values = [row[figure] for row in found[name]]
                    medians.append(statistics.median(values))
                    low, high = text.format(min(values)), text.format(max(values))
                    cells.append(f"{name} {text.format(medians[-1])} ({low} to {high})")
                ratio = medians[-1] / medians[0]
                print(f"{model}: {figure}: {', '.join(cells)}, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
