"""Core ML packages (`.mlpackage`), which only macOS runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnft.exports.artifact import INPUT_NAME, Artifact, describe_metadata

if TYPE_CHECKING:
    from torch import Tensor, nn


def write(graph: nn.Module, example: Tensor, artifact: Artifact, path: Path) -> None:
    """Write an ML program for iOS 16 and later, one image at a time."""
    import coremltools
    import torch

    image = example[:1].float() if artifact.embedded else example[:1]
    traced = torch.jit.trace(graph, image, check_trace=False)  # type: ignore[no-untyped-call]
    if artifact.embedded:
        colours = coremltools.colorlayout
        layout = colours.RGB if image.shape[1] == 3 else colours.GRAYSCALE
        given: Any = coremltools.ImageType(name=INPUT_NAME, shape=image.shape, color_layout=layout)
    else:
        given = coremltools.TensorType(name=INPUT_NAME, shape=image.shape)
    model = coremltools.convert(
        traced,
        inputs=[given],
        outputs=[coremltools.TensorType(name=artifact.output_name)],
        minimum_deployment_target=coremltools.target.iOS16,
        convert_to="mlprogram",
    )
    for name, value in describe_metadata(artifact).items():
        model.user_defined_metadata[f"mnft.{name}"] = value
    model.save(str(path))
