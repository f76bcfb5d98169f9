"""Images and weights to train on where no config is given: made from random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

# Architecture, side of its input in pixels, images a class of train and val. The default has the
# size of flower_photos in its usual split.
_DEFAULT = ("mobilenetv2_100", 224, 320, 80)
_TINY = ("test_efficientnet", 64, 16, 8)
_CLASSES = {
    "amber": (210, 150, 40),
    "azure": (50, 120, 210),
    "coral": (220, 90, 90),
    "jade": (40, 170, 110),
    "plum": (130, 60, 150),
}


def make_inputs(folder: Path, *, tiny: bool) -> Path:
    """Write images of five classes, weights, and a config that trains on both.

    The weights are random but for BatchNorm's statistics, and count as pretrained: what mnft does
    for pretrained models is what has to be tried.

    Args:
        folder: where to write.
        tiny: few small images and a tiny network.

    Returns:
        The config.
    """
    architecture, side, train, val = _TINY if tiny else _DEFAULT
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, tint in _CLASSES.items():
            target = folder / "images" / split / name
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                _draw_image(rng, tint, side).save(target / f"{number:03}.jpg", quality=90)
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    model = _make_model(architecture, side)
    save_file(model.state_dict(), weights / "model.safetensors")
    facts = {"architecture": architecture, "num_classes": len(_CLASSES)}
    changed = {"input_size": [3, side, side], "num_classes": len(_CLASSES)}
    described = {"pretrained_cfg": {**model.pretrained_cfg, **changed}}
    (weights / "config.json").write_text(json.dumps(facts | described), encoding="utf-8")
    config = folder / "generated.yaml"
    sections: dict[str, dict[str, object]] = {
        "data": {"root": str(folder / "images")},
        "model": {"name": f"local-dir:{weights}"},
    }
    if tiny:
        sections["train"] = {"epochs": 3}  # for so few images the recipe has 30
    config.write_text(json.dumps(sections, indent=1), encoding="utf-8")  # JSON is YAML
    return config


def _draw_image(rng: np.random.Generator, tint: tuple[int, int, int], side: int) -> Image.Image:
    """A smooth field of colours with a tint, and a rectangle, for edges; larger than `side`."""
    height, width = rng.integers(side, side + side // 2, 2).tolist()
    field = (rng.integers(0, 256, (6, 8, 3)) + np.array(tint)) // 2
    image = Image.fromarray(field.astype(np.uint8))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = (rng.uniform(0, 0.7, 2) * [height, width]).astype(int).tolist()
    red, green, blue = rng.integers(0, 256, 3).tolist()
    image.paste((red, green, blue), (left, top, left + width // 5, top + height // 5))
    return image


def _make_model(architecture: str, side: int) -> Any:
    """Random weights; BatchNorm's statistics are of one batch, so that no layer fades to zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=len(_CLASSES))
        fields = torch.rand(16, 3, 8, 8) * 4 - 2
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(nn.functional.interpolate(fields, size=side, mode="bicubic"))
    return model
