"""The config sections about a trained model: export, quantization, pruning.

They do not affect training, and each command may set them again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mnft.config.section import Positive, Section, UnitInterval

# The names of these sections in the config, and of the other one that does not affect training.
AFTER_TRAINING = ("export", "quantize", "prune", "search")


class ExportConfig(Section):
    """The checks that a file must pass before `mnft export` keeps it."""

    images: Annotated[int, Field(ge=1)] = 512
    """Number of val images on which the trained model and the exported file are compared, spread
    evenly over the split; a smaller split is used whole."""
    min_agreement: UnitInterval = 0.99
    """Smallest fraction of these images on which both must give the same answer."""
    max_accuracy_drop: UnitInterval = 0.005
    """Largest loss of accuracy (or of the task's main figure) on these images, as a fraction: 0.005
    is half a percentage point."""


class QuantizeConfig(Section):
    """How `mnft quantize` converts a model to int8, and how much accuracy that may cost."""

    method: Literal["auto", "onnxruntime", "nncf", "nncf_onnx", "per_tensor"] = "auto"
    """`nncf` quantizes with bias correction and writes an OpenVINO file, `nncf_onnx` the same as an
    ONNX file. `onnxruntime` uses ONNX Runtime's static quantizer and writes an ONNX file;
    `per_tensor` is that with one scale per layer, for comparison only. `auto` is `nncf` if it is
    installed, else `onnxruntime`."""
    images: Annotated[int, Field(ge=1)] = 300
    """Number of training images for calibration, equally many of each class."""
    calibration: Literal["mean", "minmax", "entropy", "percentile"] = "mean"
    """How the range of each activation is computed from these images. `mean` takes the mean of the
    ranges of the single images, which cuts off rare outliers."""
    reduce_range: bool = False
    """Use 7 bits for weights. x86 processors without VNNI need this, because their sums overflow
    with 8 bits."""
    keep_float: list[str] | None = None
    """Layers that stay in float: their names, or the names of modules that contain them (blocks.0,
    conv_stem). Empty: none at first; if accuracy drops too far, the layers that cost most."""
    float_layers: Annotated[int, Field(ge=0)] = 8
    """Largest number of layers that are kept in float for that reason."""
    max_accuracy_drop: UnitInterval = 0.005
    """Largest loss of accuracy on the val split, as a fraction: 0.005 is half a percentage
    point."""
    qat: Literal["auto", "never", "always"] = "auto"
    """Quantization-aware fine-tuning: `auto` does it only if accuracy drops too far without it."""
    qat_epochs: Annotated[int, Field(ge=1)] = 3
    """Epochs of quantization-aware fine-tuning."""
    qat_lr: Positive = 2e-4
    """Learning rate of quantization-aware fine-tuning."""


class PruneConfig(Section):
    """How `mnft prune` removes channels, and how it fine-tunes the model afterwards."""

    macs: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    """Fraction of the multiply-accumulates to keep; the result has at most that many."""
    steps: Annotated[int, Field(ge=1, le=10)] | None = None
    """Number of times that channels are removed and the model is fine-tuned. Empty: one for macs of
    0.6 or more, two down to 0.4, three below."""
    importance: Literal["taylor", "magnitude"] = "taylor"
    """Which channels are removed first. `taylor`: those whose removal changes the loss on training
    images least, to the first order. `magnitude`: those with the smallest weights."""
    round_to: Annotated[int, Field(ge=1, le=64)] = 8
    """Layers keep a multiple of this many channels, because runtimes are slow at odd widths. Very
    small networks, such as LeNet-5, need 1 or 2."""
    images: Annotated[int, Field(ge=2)] = 512
    """Number of training images that the importance and the new BatchNorm statistics are computed
    from."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Epochs of fine-tuning after each step."""
    lr: Positive | None = None
    """Learning rate of the fine-tuning. Empty: half of the run's own. It holds for all layers,
    because all of them have changed."""
    distill: bool = True
    """Use the model that is pruned as the teacher of the pruned ones."""
