"""The torch module that is exported: the bare model, or with normalisation and activation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnft.preprocessing import Preprocessing


class EmbeddedModel(nn.Module):
    """Pixels to activated outputs.

    Args:
        model: normalised images (B, C, H, W) to outputs (B, K).
        preprocessing: the normalisation that goes into the module.
        activation: the last operation, on the outputs.
        layout: layout of the pixels, "NCHW" or "NHWC".
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        activation: Callable[[Tensor], Tensor],
        layout: str,
    ) -> None:
        super().__init__()
        self.model = model
        self.activation = activation
        self.layout = layout
        # (x / 255 - mean) / std in one multiplication and one addition.
        std = torch.tensor(preprocessing.std)
        mean = torch.tensor(preprocessing.mean)
        self.register_buffer("scale", (1 / (255 * std)).view(-1, 1, 1))
        self.register_buffer("shift", (-mean / std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """From pixels in 0..255, of any type, to (B, K) activated outputs."""
        if self.layout == "NHWC":
            pixels = pixels.permute(0, 3, 1, 2)
        return self.activation(self.model(pixels.float() * self.scale + self.shift))


class ChannelsLastModel(nn.Module):
    """The model on images (B, H, W, C) instead of (B, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """From (B, H, W, C) normalised images to (B, K) outputs."""
        outputs: Tensor = self.model(images.permute(0, 3, 1, 2))
        return outputs


def build_graph(
    model: nn.Module,
    preprocessing: Preprocessing,
    activation: Callable[[Tensor], Tensor] | None = None,
    *,
    layout: str = "NCHW",
) -> tuple[nn.Module, Tensor]:
    """Copy the model to export, in evaluation mode on the CPU, and make two images for tracing.

    Args:
        model: a timm model, which stays as it is.
        preprocessing: the preprocessing of its input.
        activation: the last operation of a graph that takes pixels in 0..255 (uint8 for tracing);
            None for one that takes normalised images and gives the model's outputs.
        layout: layout of the input, "NCHW" or "NHWC".
    """
    # Contiguous: some exporters write the memory format of the weights into the graph.
    plain = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    for module in plain.modules():
        if getattr(module, "inplace", False):
            # The graph is the same, but torch.export takes twice as long for in-place operators.
            setattr(module, "inplace", False)  # noqa: B010 - to mypy an attribute is a module
    channels, height, width = preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    shape = (2, height, width, channels) if layout == "NHWC" else (2, channels, height, width)
    if activation is not None:
        pixels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        return EmbeddedModel(plain, preprocessing, activation, layout).eval(), pixels
    graph = ChannelsLastModel(plain).eval() if layout == "NHWC" else plain
    return graph, torch.randn(shape, generator=generator)
