"""Run folders that were not trained: a random model, and a split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from mnft.data.manifest import Manifest, Sample, save_manifest
from mnft.model.bundle import ModelCard, save_bundle
from mnft.preprocessing import Preprocessing
from support.images import COLOURS

CLASSES = tuple(COLOURS)  # blue, green, red


def save_model(
    folder: Path, classes: tuple[str, ...] = CLASSES, record: dict[str, Any] | None = None
) -> None:
    """A random LeNet-5: wrong often enough for the figures to mean something."""
    import timm

    torch.manual_seed(3)
    model = timm.create_model("lenet5", num_classes=len(classes))
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing((3, 32, 32), half, half, "bilinear", 1.0)
    card = ModelCard("lenet5", {}, preprocessing, classes, model.pretrained_cfg)
    save_bundle(folder, model.state_dict(), card, record or {})


def record_split(run: Path, root: Path, classes: tuple[str, ...] = CLASSES) -> None:
    """What `mnft train` leaves beside the models."""
    samples = []
    for path in sorted(root.rglob("*.png")):
        split, name = path.relative_to(root).parts[:2]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        samples.append(Sample(path.relative_to(root).as_posix(), name, split, sha256))
    save_manifest(Manifest(root, classes, tuple(samples)), run / "split.json")
    (run / "config.yaml").write_text(f"data:\n  root: {root}\n")
