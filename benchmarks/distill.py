"""What several teachers and unlabelled images are worth: flowers, 20 labelled images a class.

    python benchmarks/distill.py FOLDER teachers        three teachers, from the labelled images
    python benchmarks/distill.py FOLDER ARM [SEED ...]  students of an arm of ARMS
    python benchmarks/distill.py FOLDER test            each student on the test split, once
    python benchmarks/distill.py FOLDER table           mean and spread of what is there

It needs MNFT_ASSETS (see benchmarks/2026-11-21.md). The first 20 images of each class by name are
labelled, and the other 1,500 training images are the unlabelled folder. Val chooses the epoch.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ASSETS = Path(os.environ["MNFT_ASSETS"])
SIZE = 128
LABELLED = 20
TEACHERS = {"v1": "mobilenetv1_100_tf", "v2": "mobilenetv2_100", "v3": "tf_mobilenetv3_small_075"}
STUDENT = "tf_mobilenetv3_small_075"
# Teachers, and whether the unlabelled images are used.
ARMS: dict[str, tuple[list[str], bool]] = {
    "none": ([], False),
    "one": (["v2"], False),
    "three": (["v1", "v2", "v3"], False),
    "one_unlabelled": (["v2"], True),
    "three_unlabelled": (["v1", "v2", "v3"], True),
}


def mnft(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mnft", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"mnft {' '.join(words)}\n{done.stderr}")
    return done.stdout


def prepare(folder: Path) -> None:
    """Links to the images: FOLDER/data with 20 labelled a class, and FOLDER/unlabelled."""
    for split in ("train", "val", "test"):
        for kind in sorted((ASSETS / "data/flowers" / split).iterdir()):
            for number, image in enumerate(sorted(kind.iterdir())):
                labelled = split != "train" or number < LABELLED
                target = (
                    folder / "data" / split / kind.name / image.name
                    if labelled
                    else folder / "unlabelled" / f"{kind.name}_{image.name}"
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.symlink_to(image.resolve())


def train(folder: Path, name: str, weights: str, seed: int, *words: str) -> None:
    config = folder / f"{weights}.yaml"
    if not config.exists():
        config.write_text(
            f"data:\n  root: {folder / 'data'}\n  img_size: {SIZE}\n"
            f"model:\n  name: local-dir:{ASSETS / 'weights' / weights}\n"
            f"run:\n  dir: {folder / 'runs'}\n"
        )
    if (folder / "runs" / name / "seconds").exists():
        return
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)  # of an attempt that was stopped
    started = time.perf_counter()
    verb = "distill" if "--teacher" in words else "train"
    sets = [f"train.seed={seed}", f"run.name={name}"]
    mnft(verb, str(config), *words, *(word for value in sets for word in ("--set", value)))
    (folder / "runs" / name / "seconds").write_text(f"{time.perf_counter() - started:.1f}")


def show(folder: Path) -> None:
    names = {*TEACHERS, *(path.name.rsplit("-", 1)[0] for path in (folder / "runs").glob("*-*"))}
    for name in sorted(names):
        val, test, seconds = [], [], []
        for run in sorted((folder / "runs").glob(f"{name}-[0-9]")) or [folder / "runs" / name]:
            if not (run / "seconds").exists():
                continue
            result = json.loads((run / "best" / "mnft.json").read_text())["result"]
            val.append(100 * result["val_accuracy"])
            seconds.append(float((run / "seconds").read_text()))
            if (figures := run / "eval-test" / "metrics.json").exists():
                test.append(100 * json.loads(figures.read_text())["accuracy"])
        for what, values in (("val", val), ("test", test)):
            if values:
                spread = f" sd {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                shown = ", ".join(f"{value:.2f}" for value in values)
                mean = statistics.mean(values)
                print(f"{name:20} {what:4} {mean:6.2f}{spread}  n {len(values)}: {shown}")
        if seconds:
            print(f"{name:20} time {statistics.mean(seconds):6.1f} s")


def main() -> None:
    folder, what = Path(sys.argv[1]).resolve(), sys.argv[2]
    prepare(folder)
    if what == "teachers":
        for name, weights in TEACHERS.items():
            train(folder, name, weights, 0)
    elif what == "test":
        for run in sorted((folder / "runs").iterdir()):
            if (run / "seconds").exists() and not (run / "eval-test").exists():
                mnft("eval", str(run), "--split", "test", "--output", str(run / "eval-test"))
    elif what != "table":
        names, unlabelled = ARMS[what]
        words = [w for name in names for w in ("--teacher", str(folder / "runs" / name))]
        if unlabelled:
            words += ["--set", f"distill.images={folder / 'unlabelled'}"]
        words += [w for value in os.environ.get("SETS", "").split() for w in ("--set", value)]
        for seed in map(int, sys.argv[3:] or ("0", "1", "2")):
            train(folder, f"{what}{os.environ.get('SUFFIX', '')}-{seed}", STUDENT, seed, *words)
    show(folder)


if __name__ == "__main__":
    main()
