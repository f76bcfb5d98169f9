"""The sections of the config that speak of a trained model: export, quantization, pruning.

They change nothing in the training, and may be given anew with each command.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mnft.config.section import Positive, Section, Share

# The names of these sections in the config.
AFTER_TRAINING = ("export", "quantize", "prune")


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

    method: Literal["auto", "onnxruntime", "nncf", "nncf_onnx", "per_tensor"] = "auto"
    """`onnxruntime` (its static quantizer, an ONNX file), `nncf` (with bias correction, an OpenVINO
    file), `nncf_onnx` (the same as an ONNX file), `per_tensor` (onnxruntime with one scale a
    layer, for comparison only); `auto` is nncf where it is installed, else onnxruntime."""
    images: Annotated[int, Field(ge=1)] = 300
    """Training images for calibration, as many of each class."""
    calibration: Literal["mean", "minmax", "entropy", "percentile"] = "mean"
    """How the range of each activation is found from these images: `mean` is that of the images'
    own ranges, which cuts rare outliers."""
    reduce_range: bool = False
    """Weights in 7 bits, for x86 processors without VNNI, whose sums overflow with 8."""
    keep_float: list[str] | None = None
    """Names of layers, or of what they lie in, that stay in float (blocks.0, conv_stem); empty:
    none at first, and where the loss is over the gate, those that lose most."""
    float_layers: Annotated[int, Field(ge=0)] = 8
    """How many of these at most."""
    max_accuracy_drop: Share = 0.005
    """Largest loss of accuracy on the val split, as a share: 0.005 is half a point."""
    qat: Literal["auto", "never", "always"] = "auto"
    """Quantization-aware fine-tuning: `auto` does it where the loss is over the gate otherwise."""
    qat_epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the training images of that fine-tuning."""
    qat_lr: Positive = 2e-4
    """Its learning rate."""


class PruneConfig(Section):
    """How `mnft prune` takes channels out of a model, and how it is fine-tuned afterwards."""

    macs: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    """Share of the multiply-accumulates that is left; the result is at most that."""
    steps: Annotated[int, Field(ge=1, le=10)] | None = None
    """Times that channels are taken out and the model is fine-tuned; empty: one down to 0.6, two
    down to 0.4, three below."""
    importance: Literal["taylor", "magnitude"] = "taylor"
    """Which channels go first: `taylor`, those whose removal changes the loss on training images
    least (to the first order); `magnitude`, those with the smallest weights."""
    round_to: Annotated[int, Field(ge=1, le=64)] = 8
    """Layers keep a multiple of this many channels. Runtimes are slow at odd widths; very small
    networks, such as LeNet-5, need 1 or 2."""
    images: Annotated[int, Field(ge=2)] = 512
    """Training images for the importance, and for new statistics of BatchNorm."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Passes over the training images of each fine-tuning (its train.epochs)."""
    lr: Positive | None = None
    """Learning rate of each fine-tuning (its optim.lr); empty: half the run's own. All
    layers learn at it, as all have changed."""
    distill: bool = True
    """The model that was given teaches the pruned ones (their distill.teacher)."""
