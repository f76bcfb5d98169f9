"""The sections of the config that speak of a trained model: export, quantization, pruning.

They change nothing in the training, and may be given anew with each command.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mnft.config.section import Positive, Section, Share


class ExportConfig(Section):
    """What an exported file must prove before `mnft export` hands it over."""

    images: Annotated[int, Field(ge=1)] = 512
    """Val images that the trained model and the exported file are compared on, evenly over the
    split; all where there are fewer."""
    min_agreement: Share = 0.99
    """Smallest share of these images on which both must name the same class."""
    max_accuracy_drop: Share = 0.005
    """Largest loss of accuracy on these images, as a share: 0.005 is half a point."""


class QuantizeConfig(Section):
    """How `mnft quantize` brings a model to int8, and what it may cost."""

    method: Literal["auto", "onnxruntime", "nncf", "per_tensor"] = "auto"
    """`onnxruntime` (its static quantizer, a portable ONNX file), `nncf` (with bias correction, an
    OpenVINO file), `per_tensor` (onnxruntime with one scale a layer, for comparison); `auto` is
    onnxruntime."""
    images: Annotated[int, Field(ge=1)] = 300
    """Training images for calibration, evenly over the classes."""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the range of each activation is found from these images."""
    keep_float: list[str] | None = None
    """Names of layers that stay in float; empty: none at first, and where the loss is over the
    gate, those that lose most."""
    max_accuracy_drop: Share = 0.005
    """Largest loss of accuracy on the val split, as a share: 0.005 is half a point."""
    qat: Literal["auto", "never", "always"] = "auto"
    """Quantization-aware fine-tuning: `auto` does it where the loss is over the gate otherwise."""
    qat_epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the training images of that fine-tuning."""
    qat_lr: Positive = 1e-5
    """Its learning rate."""
