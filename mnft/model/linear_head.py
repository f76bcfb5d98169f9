"""Models whose head is one linear layer on pooled features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mnft.model.freeze import evaluating


def find_linear_head(model: nn.Module) -> nn.Linear | None:
    """The classifier of a timm model, if it is one linear layer; else None."""
    timm_model: Any = model
    classifier = timm_model.get_classifier() if hasattr(model, "get_classifier") else None
    return classifier if isinstance(classifier, nn.Linear) else None


def has_linear_head(model: nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Whether the model's outputs are a linear layer applied to its pooled features.

    Args:
        model: a timm model; it is run once, in evaluation mode.
        input_size: (C, H, W) of the model's input.
    """
    head = find_linear_head(model)
    if head is None:
        return False
    parameter = next(model.parameters())
    images = torch.linspace(-1, 1, math.prod(input_size), device=parameter.device)
    with torch.inference_mode(), evaluating(model):
        features = forward_features(model, images.view(1, *input_size))
        if features.ndim != 2 or features.shape[1] != head.in_features:
            return False
        outputs = model(images.view(1, *input_size))
        return torch.allclose(head(features), outputs, rtol=1e-3, atol=1e-3)


class DividedOutputs(nn.Module):
    """A model whose outputs are divided by a number.

    Args:
        model: images to outputs.
        divisor: a number above 0.
    """

    def __init__(self, model: nn.Module, divisor: float) -> None:
        super().__init__()
        self.model = model
        self.divisor = divisor

    def forward(self, images: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, K)."""
        outputs: Tensor = self.model(images)
        return outputs / self.divisor


def divide_outputs(model: nn.Module, divisor: float, input_size: tuple[int, int, int]) -> nn.Module:
    """Divide a model's outputs by a number, in the weights of its last layer where that is linear.

    Args:
        model: a timm model; it is changed.
        divisor: a number above 0.
        input_size: (C, H, W) of the model's input.

    Returns:
        The model, or one around it.
    """
    if divisor == 1:
        return model
    head = find_linear_head(model)
    if head is None or not has_linear_head(model, input_size):
        return DividedOutputs(model, divisor)
    with torch.no_grad():
        head.weight.div_(divisor)
        if head.bias is not None:
            head.bias.div_(divisor)
    return model


def forward_features(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the pooled features that the head takes, (B, D)."""
    timm_model: Any = model
    features: Tensor = timm_model.forward_head(timm_model.forward_features(images), pre_logits=True)
    return features
