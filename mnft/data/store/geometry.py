"""The sizes that the store keeps images in: exact for evaluation, roomy for random crops."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from mnft.data.decode import decode_bytes
from mnft.data.transforms import build_eval_transform, limit_aspect
from mnft.preprocessing import Preprocessing

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# Sides longer than this many times the shorter one are cut: random crops of at most 4:3 would
# hardly ever reach the ends of a longer strip, and a strip could fill the disk.
_MAX_ASPECT = 8


@dataclass(frozen=True, slots=True)
class EvalGeometry:
    """What the model sees in evaluation: the pixels of the standard pipeline."""

    preprocessing: Preprocessing

    @property
    def key(self) -> str:
        """Text that is the same for the same pixels."""
        spec = asdict(self.preprocessing)
        del spec["mean"], spec["std"]  # applied to the pixels later
        if self.preprocessing.crop_mode == "border":
            spec["fill"] = self.preprocessing.fill
        return json.dumps({"kind": "eval", **spec})

    def decode(self, content: bytes) -> Pixels:
        """The content of an image file to (H, W, C) uint8.

        Raises:
            DataError: it cannot be decoded.
        """
        image = build_eval_transform(self.preprocessing)(decode_bytes(content))
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


@dataclass(frozen=True, slots=True)
class TrainGeometry:
    """The whole image, its shorter side at most `short_side` pixels; smaller images as they are.

    JPEGs several times larger are decoded with scaled DCT, which keeps at least that size.

    Attributes:
        short_side: length of the shorter side in pixels.
        channels: 3 for RGB, 1 for grey.
        interpolation: how images are reduced: "bilinear", "bicubic" or "nearest".
    """

    short_side: int
    channels: int
    interpolation: str

    @property
    def key(self) -> str:
        """Text that is the same for the same pixels."""
        return json.dumps({"kind": "train", **asdict(self)})

    def count_bytes(self, width: int, height: int) -> int:
        """Bytes of the pixels of an image of this size, to a row or column."""
        short = min(width, height)
        scale = min(1.0, self.short_side / short)
        long = min(max(width, height), _MAX_ASPECT * short)
        return round(short * scale) * round(long * scale) * self.channels

    def decode(self, content: bytes) -> Pixels:
        """The content of an image file to (H, W, C) uint8, H and W its own.

        Raises:
            DataError: it cannot be decoded.
        """
        image = limit_aspect(decode_bytes(content, min_side=self.short_side), _MAX_ASPECT)
        if self.channels == 1:
            image = image.convert("L")
        if (scale := self.short_side / min(image.size)) < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        pixels = np.array(image)  # a copy: torch warns of arrays that cannot be written to
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def choose_train_geometry(
    preprocessing: Preprocessing, scale: tuple[float, float]
) -> TrainGeometry:
    """Keep enough pixels for random crops whose fractions of the area are in `scale`.

    The side is such that a crop of the middle fraction has the size of the input: smaller crops
    are enlarged a little, larger ones reduced.
    """
    channels, height, width = preprocessing.input_size
    middle = (scale[0] + scale[1]) / 2
    short_side = math.ceil(max(height, width) / math.sqrt(max(middle, 0.05)))
    return TrainGeometry(short_side, channels, preprocessing.interpolation)
