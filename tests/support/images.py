"""Small images and folders of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

MakeFolder = Callable[..., Path]


def write_image(path: Path, colour: tuple[int, int, int], *, seed: int, size: int = 24) -> None:
    """An image of one colour with a little noise, so that contents differ."""
    noise = np.random.default_rng(seed).integers(0, 30, (size, size, 3))
    pixels = np.clip(np.asarray(colour) * 0.85 + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (220, 30, 20)}


def draw(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of soft coloured areas."""
    areas = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(areas).resize(size, Image.Resampling.BICUBIC)


def build(
    root: Path, counts: dict[str, int], size: tuple[int, int] = (96, 64), *, first: int = 0
) -> Path:
    """Folders with so many different pictures, by seeds from `first` thousand on."""
    for number, (folder, count) in enumerate(counts.items(), first):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            draw(1000 * number + index, size).save(root / folder / f"{index:03d}.png")
    return root
