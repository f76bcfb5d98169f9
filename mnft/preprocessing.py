"""The one specification of how an image becomes a model's input, as timm's `pretrained_cfg`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREPROCESSING_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
# The resized image is the input divided by crop_pct: 0.002 would make 16,000 pixels of 32. timm's
# own values lie between 0.875 and 1.15.
MIN_CROP_PCT = 0.25
_MAX_CROP_PCT = 2.0
_MAX_SIDE = 4096
_CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Geometry and normalisation of a model's input.

    Attributes:
        input_size: channels, height, width in pixels.
        mean: a channel mean of values in 0..1, one a channel.
        std: standard deviation of each channel.
        interpolation: "bilinear", "bicubic" or "nearest".
        crop_pct: share of the resized image's side that the centre crop keeps, at least 0.25;
            above 1 (timm's VOLO) the crop has a border.
        crop_mode: timm's "center" (the image is resized until it covers the input, and its middle
            is cut out), "squash" (it gets the input's aspect) or "border" (it is resized until it
            fits in the input, and the rest is filled with the mean).
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read what `timm.data.resolve_model_data_config` returns.

        Raises:
            ValueError: no model can take images so, as in a file that was damaged or edited.
        """
        channels, height, width = config["input_size"]
        found = cls(
            input_size=(channels, height, width),
            mean=_per_channel(config["mean"], channels),
            std=_per_channel(config["std"], channels),
            interpolation=config["interpolation"],
            crop_pct=float(config["crop_pct"]),
            crop_mode=config.get("crop_mode") or "center",
        )
        found._check()
        return found

    def _check(self) -> None:
        sides_fit = all(isinstance(n, int) and 1 <= n <= _MAX_SIDE for n in self.input_size)
        rules = {
            "input_size": (sides_fit, f"whole numbers from 1 to {_MAX_SIDE:,}"),
            "mean": (all(map(math.isfinite, self.mean)), "finite numbers"),
            "std": (all(0 < value < math.inf for value in self.std), "numbers above 0"),
            "crop_pct": (
                MIN_CROP_PCT <= self.crop_pct <= _MAX_CROP_PCT,
                f"a number from {MIN_CROP_PCT} to {_MAX_CROP_PCT}",
            ),
            "crop_mode": (self.crop_mode in _CROP_MODES, f"one of {', '.join(_CROP_MODES)}"),
        }
        for name, (is_right, expected) in rules.items():
            if not is_right:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}")

    @property
    def fill(self) -> tuple[int, ...]:
        """The colour of the border in crop mode "border": the mean, 0 to 255."""
        return tuple(round(255 * value) for value in self.mean)

    @property
    def is_part_of_image(self) -> bool:
        """Whether evaluation sees a part of the image, with its aspect kept and without border."""
        return self.crop_mode == "center" and self.crop_pct <= 1

    def locate_input(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Where the model's input lies on an image: left, top, width and height.

        Args:
            width: width of the image in pixels.
            height: height of the image in pixels.

        Returns:
            Fractions of the image's width and height; with a border they go beyond it.
        """
        _, input_height, input_width = self.input_size
        resized_width = math.floor(input_width / self.crop_pct)
        resized_height = math.floor(input_height / self.crop_pct)
        ratios = resized_width / width, resized_height / height
        if self.crop_mode != "squash":
            scale = min(ratios) if self.crop_mode == "border" else max(ratios)
            ratios = scale, scale
        share_x, share_y = input_width / (ratios[0] * width), input_height / (ratios[1] * height)
        return (1 - share_x) / 2, (1 - share_y) / 2, share_x, share_y

    def as_pretrained_cfg(self) -> dict[str, Any]:
        """The keys of timm's `pretrained_cfg` that hold this specification."""
        return {
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value a channel; three colour values become their mean for a grey input."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels
