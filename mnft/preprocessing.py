"""The one specification of how an image becomes a model's input, as timm's `pretrained_cfg`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREPROCESSING_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Geometry and normalisation of a model's input.

    Attributes:
        input_size: channels, height, width in pixels.
        mean: a channel mean of values in 0..1, one a channel.
        std: a standard deviation likewise.
        interpolation: "bilinear", "bicubic" or "nearest".
        crop_pct: share of the resized image that the centre crop keeps, in (0, 1].
        crop_mode: timm's "center", "squash" or "border".
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read what `timm.data.resolve_model_data_config` returns."""
        channels, height, width = config["input_size"]
        return cls(
            input_size=(channels, height, width),
            mean=_per_channel(config["mean"], channels),
            std=_per_channel(config["std"], channels),
            interpolation=config["interpolation"],
            crop_pct=float(config["crop_pct"]),
            crop_mode=config.get("crop_mode") or "center",
        )

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
