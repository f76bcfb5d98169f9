"""What a device does to images: blur, noise, compression, light, distance, in three levels each.

`mnft eval --robustness` applies them to decoded images, and `augment.device` to training images.
They are not those of ImageNet-C (Hendrycks and Dietterich 2019): the amounts have units that can be
measured at a device. Lengths are those of an image whose shorter side has 256 pixels, and are
scaled to that of the image, so that they mean the same whatever camera took it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from mnft.data.store.geometry import Pixels

# The shorter side that lengths are given for, in pixels.
LINES = 256
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One thing that happens to images, and how much of it.

    Attributes:
        name: name in a device's words.
        unit: what an amount says, in a word or two; docs/robustness.md explains it.
        none: amount that changes nothing, or next to nothing.
        levels: light, medium and strong amount.
        apply: image (H, W, 3) uint8, amount and generator to image; only its random direction,
            place or noise is drawn from the generator.
    """

    name: str
    unit: str
    none: float
    levels: tuple[float, float, float]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]


def corrupt(pixels: Pixels, number: int, amount: float, seed: int) -> Pixels:
    """Apply one corruption; the same arguments give the same pixels.

    Args:
        pixels: (H, W, 3) uint8.
        number: position in `CORRUPTIONS`.
        amount: how much, in the corruption's unit.
        seed: seed of the image; all amounts share its random choices, so that more is worse.

    Returns:
        (H, W, 3) uint8.
    """
    return CORRUPTIONS[number].apply(pixels, amount, np.random.default_rng([seed, number]))


def vary_as_device(pixels: Pixels, probability: float, seed: int) -> Pixels:
    """Apply one or two random corruptions of random amounts, with some probability.

    Amounts are uniform between none and the strong level. What happens follows only from the seed.

    Args:
        pixels: (H, W, C) uint8; grey images have one channel.
        probability: probability in [0, 1] that anything happens to the image.
        seed: seed of the image.

    Returns:
        (H, W, C) uint8.
    """
    random = np.random.default_rng([seed, len(CORRUPTIONS)])
    if random.random() >= probability:
        return pixels
    count = random.integers(1, 3)
    # In the order of the table, which is that from the scene to the file.
    chosen = np.sort(random.choice(len(CORRUPTIONS), count, replace=False))
    varied = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    for number, fraction in zip(chosen.tolist(), random.random(count).tolist(), strict=True):
        none, strong = CORRUPTIONS[number].none, CORRUPTIONS[number].levels[-1]
        varied = corrupt(varied, number, none + fraction * (strong - none), seed)
    return varied[:, :, 1:2] if pixels.shape[2] == 1 else varied


def _move_away(pixels: Pixels, size: float, _: np.random.Generator) -> Pixels:
    """Show the whole image smaller, in front of its mean colour."""
    image = Image.fromarray(pixels)
    width, height = (max(1, round(side * size)) for side in image.size)
    canvas = Image.new("RGB", image.size, _mean_colour(image))
    place = ((image.width - width) // 2, (image.height - height) // 2)
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
    return np.array(canvas)


def _turn(pixels: Pixels, degrees: float, random: np.random.Generator) -> Pixels:
    """Turn to the left or right about the middle; corners get the mean colour."""
    angle = degrees if random.random() < 0.5 else -degrees
    image = Image.fromarray(pixels)
    fill = _mean_colour(image)
    return np.array(image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill))


def _cover(pixels: Pixels, fraction: float, random: np.random.Generator) -> Pixels:
    """Put a grey rectangle with the image's proportions somewhere."""
    height, width = (round(side * math.sqrt(fraction)) for side in pixels.shape[:2])
    place = random.random(2)
    top = round(float(place[0]) * (pixels.shape[0] - height))
    left = round(float(place[1]) * (pixels.shape[1] - width))
    out = pixels.copy()
    out[top : top + height, left : left + width] = 127
    return out


def _shift_colour(pixels: Pixels, gain: float, _: np.random.Generator) -> Pixels:
    """Red times 1 + gain, blue times 1 - gain: warm light, or cold if negative."""
    return _round(pixels.astype(np.float32) * np.array([1 + gain, 1, 1 - gain], np.float32))


def _brighten(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """All values times a factor."""
    return _round(pixels.astype(np.float32) * np.float32(factor))


def _defocus(pixels: Pixels, radius: float, _: np.random.Generator) -> Pixels:
    """The mean over a disk, as a lens that is out of focus makes of each point."""
    radius *= _scale(pixels)
    side = np.linspace(-radius, radius, 2 * math.ceil(4 * radius) + 1)
    y, x = (part.ravel() for part in np.meshgrid(side, side))
    inside = y**2 + x**2 <= radius**2
    return _average(pixels, y[inside], x[inside])


def _shake(pixels: Pixels, length: float, random: np.random.Generator) -> Pixels:
    """The mean along a straight line in a random direction."""
    length *= _scale(pixels)
    angle = random.random() * math.pi
    along = np.linspace(-length / 2, length / 2, 8 * math.ceil(length) + 1)
    return _average(pixels, along * math.sin(angle), along * math.cos(angle))


def _add_noise(pixels: Pixels, deviation: float, random: np.random.Generator) -> Pixels:
    """Normally distributed noise, independent for each value.

    Images of more lines get more of it: it would average out when the model's input is made.
    """
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    return _round(pixels + noise * np.float32(deviation * max(1.0, _scale(pixels))))


def _reduce(pixels: Pixels, lines: float, _: np.random.Generator) -> Pixels:
    """Bring the shorter side down to so many pixels, and enlarge the image again."""
    image = Image.fromarray(pixels)
    factor = min(1.0, lines / min(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return np.array(small.resize(image.size, Image.Resampling.BILINEAR))


def _flatten(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Distances from the mean value times a factor."""
    mean = np.float32(pixels.mean())
    return _round((pixels - mean) * np.float32(factor) + mean)


def _desaturate(pixels: Pixels, kept: float, _: np.random.Generator) -> Pixels:
    """Distances from the grey image times a factor; 0 leaves three equal channels."""
    grey = np.array(Image.fromarray(pixels).convert("L"), dtype=np.float32)[:, :, None]
    return _round((pixels - grey) * np.float32(kept) + grey)


def _compress(pixels: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    """Write and read a JPEG file, with halved colour resolution as cameras do."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality), subsampling="4:2:0")
    return np.array(Image.open(file))


# In the order in which they happen, from the scene to the file. The amounts are such that people
# still recognise what most strongly corrupted photographs show.
CORRUPTIONS = (
    Corruption("far away", "size", 1.0, (0.8, 0.6, 0.4), _move_away),
    Corruption("turned", "degrees", 0.0, (10, 20, 40), _turn),
    Corruption("covered", "area", 0.0, (0.1, 0.25, 0.4), _cover),
    Corruption("dark", "brightness", 1.0, (0.6, 0.4, 0.2), _brighten),
    Corruption("bright", "brightness", 1.0, (1.3, 1.6, 2.2), _brighten),
    Corruption("warm light", "red gain", 0.0, (0.1, 0.2, 0.35), _shift_colour),
    Corruption("cold light", "red gain", 0.0, (-0.1, -0.2, -0.35), _shift_colour),
    Corruption("out of focus", "radius, 1/256", 0.0, (1.5, 3, 5), _defocus),
    Corruption("motion", "length, 1/256", 0.0, (8, 15, 25), _shake),
    Corruption("noise", "deviation, 1/255", 0.0, (12, 25, 50), _add_noise),
    Corruption("low resolution", "lines", 224, (112, 56, 28), _reduce),
    Corruption("low contrast", "contrast", 1.0, (0.6, 0.4, 0.2), _flatten),
    Corruption("grey", "colour", 1.0, (0.5, 0.2, 0.0), _desaturate),
    Corruption("JPEG", "quality", 100, (30, 15, 7), _compress),
)
LEVELS = ("light", "medium", "strong")


def _scale(pixels: Pixels) -> float:
    """How many pixels of the image one of 256 is."""
    return float(min(pixels.shape[:2])) / LINES


def _mean_colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.array(image.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist())


def _average(pixels: Pixels, y: np.ndarray, x: np.ndarray) -> Pixels:
    """The mean of copies of the image that are moved by so many pixels; edges are repeated."""
    points = np.rint(np.stack([y, x], axis=1)).astype(int)
    moves, counts = np.unique(points, axis=0, return_counts=True)
    reach = int(np.abs(moves).max())
    padded = np.pad(pixels.astype(np.float32), ((reach, reach), (reach, reach), (0, 0)), "edge")
    height, width = pixels.shape[:2]
    total, part = np.zeros(pixels.shape, np.float32), np.empty(pixels.shape, np.float32)
    for (down, right), count in zip((moves + reach).tolist(), counts.tolist(), strict=True):
        moved = padded[down : down + height, right : right + width]
        total += np.multiply(moved, np.float32(count / len(points)), out=part)
    return _round(total)


def _round(values: Floats) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
