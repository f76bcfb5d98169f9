"""Calibration, thresholds and images of none of the classes, on the flowers; prints Markdown.

    MNFT_ASSETS=/path python benchmarks/decisions.py [--out FOLDER]

MobileNetV2 0.35 at 96 pixels, the head alone and three epochs of fine-tuning, seeds 0 to 2. The val
split chooses temperature and threshold; the test split is looked at once. For images of none of the
classes the head is trained without tulips: on nothing else, with 40 photographs of clothes as
`data.other`, and with 40 tulips. Other clothes and other tulips are the unknown images.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from typer.testing import CliRunner

from mnft.cli.app import app

ASSETS = Path(os.environ["MNFT_ASSETS"])
FLOWERS, CLOTHES = ASSETS / "data" / "flowers", ASSETS / "data" / "clothing"
SEEDS = (0, 1, 2)
TARGET = 0.95


def mnft(*args: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    if result.exit_code:
        raise SystemExit(f"{args}: {result.stderr}") from result.exception
    return json.loads(result.stdout)


def train(folder: Path, name: str, seed: int, data: dict[str, Any], **sections: Any) -> Path:
    config = folder / f"{name}-{seed}.yaml"
    values = {
        "data": {"img_size": 96, "store": str(folder / "store"), **data},
        "model": {"name": f"local-dir:{ASSETS / 'weights' / 'mobilenetv2_035_tf'}"},
        "decision": {"target_accuracy": TARGET},
        "run": {"dir": str(folder / "runs"), "name": f"{name}-{seed}", "tensorboard": False},
        "train": {"seed": seed, "device": "cpu", "stages": ["head"]},
        **sections,
    }
    values["train"]["seed"] = seed
    config.write_text(yaml.safe_dump(values))
    started = time.monotonic()
    best = mnft("train", config)["best"]
    print(f"<!-- {name} {seed}: {time.monotonic() - started:.0f} s -->", flush=True)
    return Path(best)


def show(values: list[float], scale: float = 100, digits: int = 1) -> str:
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{scale * mean(values):.{digits}f} ± {scale * spread:.{digits}f}"


def measure_known(folder: Path) -> None:
    """Calibration and threshold: what val says, and what the test split gives."""
    tuned = {
        "train": {"device": "cpu", "epochs": 3, "stages": ["head", "finetune"]},
        "eval": {"monitor": "loss"},
    }
    # The last epoch, so that it is a fine-tuned model, whatever the head's figures are.
    recipes: dict[str, tuple[dict[str, Any], str]] = {
        "head": ({}, "best"),
        "tuned": (tuned, "last"),
    }
    print("| model | seed | T | NLL | Brier | ECE (95%) | val kept, right | test kept, right |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (sections, which) in recipes.items():
        for seed in SEEDS:
            best = train(folder, name, seed, {"root": str(FLOWERS)}, **sections)
            out = folder / f"eval-{name}-{seed}"
            test = mnft("eval", best.parent / which, "--split", "test", "-o", out)
            after, before = test["calibration"], test["uncalibrated"] or test["calibration"]
            eces = (
                "{:.3f} ({:.3f} to {:.3f})".format(c["ece"], *c["ece_interval"])
                for c in (before, after)
            )
            on_val, on_test = test["on_val"], test["decision"]
            cells = [
                "{:.1%}, {:.1%} ({:.1%} to {:.1%})".format(d["kept"], d["accuracy"], *d["interval"])
                if d and d.get("accuracy")
                else "not reached"
                for d in (on_val, on_test)
            ]
            print(
                f"| {name} | {seed} | {test['temperature']:.3f} "
                f"| {before['nll']:.3f} → {after['nll']:.3f} "
                f"| {before['brier']:.3f} → {after['brier']:.3f} "
                f"| {' → '.join(eces)} | {' | '.join(cells)} |",
                flush=True,
            )


def measure_unknown(folder: Path) -> None:
    """Images of none of the classes: accepted at the threshold, and AUROC."""
    known = folder / "four"
    for split in ("train", "val", "test"):
        for source in sorted((FLOWERS / split).iterdir()):
            if source.is_dir() and source.name != "tulips":
                shutil.copytree(source, known / split / source.name)
    with (CLOTHES / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    clothes = sorted(CLOTHES.rglob("*.jpg"))[:: max(1, len(rows) // 140)]
    tulips = sorted((FLOWERS / "train" / "tulips").iterdir())[:40]
    folders = {
        "other-clothes": clothes[:40],
        "other-tulips": tulips,
        "clothes": clothes[40:140],
        "tulips": sorted((FLOWERS / "test" / "tulips").iterdir()),
    }
    for name, files in folders.items():
        (folder / name).mkdir()
        for number, file in enumerate(files):
            shutil.copyfile(file, folder / name / f"{number:03d}{file.suffix}")
    print("\n| `data.other` | test accuracy | kept, right | tulips: named, AUROC | clothes: same |")
    print("|---|---|---|---|---|")
    for other in (None, "other-clothes", "other-tulips"):
        data = {"root": str(known), **({"other": str(folder / other)} if other else {})}
        found: dict[str, list[float]] = {}
        for seed in SEEDS:
            best = train(folder, f"four-{other}", seed, data)
            for unknown in ("tulips", "clothes"):
                test = mnft("eval", best.parent, "--unknown", folder / unknown)
                figures = test["unknown"]
                for key, value in (
                    ("accuracy", test["accuracy"]),
                    ("kept", test["decision"]["kept"]),
                    ("right", test["decision"]["accuracy"]),
                    (f"{unknown} accepted", figures["accepted"]),
                    (f"{unknown} auroc", figures["auroc"]),
                ):
                    found.setdefault(key, []).append(value)
        cells = [show(found["accuracy"]), f"{show(found['kept'])}, {show(found['right'])}"]
        for unknown in ("tulips", "clothes"):
            auroc = show(found[f"{unknown} auroc"], 1, 3)
            cells.append(f"{show(found[f'{unknown} accepted'])}, {auroc}")
        print(f"| {other or 'none'} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for runs; default a temporary one")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        folder = (out or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        measure_known(folder)
        measure_unknown(folder)


if __name__ == "__main__":
    main()
