"""Heat maps: which parts of an image raised an output of a model (Grad-CAM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from mnft.errors import ModelError
from mnft.model.freeze import evaluating

# The fraction of the pixels that `measure_blur` blurs at a time.
_PARTS = 4


def compute_gradcam(model: nn.Module, images: Tensor, outputs: Sequence[int]) -> Tensor:
    """Compute Grad-CAM of one output for each image (Selvaraju et al. 2017, equations 1 and 2).

    The last feature maps, weighted by the mean of the output's gradient over each of them, are
    summed; what lowers the output is cut off. The gradient goes through the head only, so it costs
    little beside the forward pass.

    A map shows where the features lie that raised the output. It does not say what caused it, and
    says nothing of what would have changed the answer.

    Args:
        model: a timm model whose `forward_features` gives maps, (B, D, H, W) or (B, H, W, D), or
            tokens, (B, N, D).
        images: (B, C, H, W) float, the model's input.
        outputs: index of one output for each image.

    Returns:
        (B, h, w) float32 in [0, 1], the largest value of each map 1; all zeros where nothing
        raised the output, as with models that read only a class token.

    Raises:
        ModelError: the model has no such features.
    """
    check_explainable(model)
    timm_model: Any = model
    with evaluating(model):
        with torch.no_grad():
            features: Tensor = timm_model.forward_features(images)
        if not isinstance(features, Tensor) or features.ndim not in {3, 4}:
            raise ModelError("the features of this model are no maps, so it has no heat maps")
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            # A copy, because a head may begin with an activation in place.
            values = timm_model.forward_head(leaf.clone())
            chosen = values[torch.arange(len(images)), torch.tensor(outputs)].sum()
            (gradient,) = torch.autograd.grad(chosen, leaf)
    maps, gradients = (_as_maps(timm_model, tensor.float()) for tensor in (leaf.detach(), gradient))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * maps).sum(dim=1))
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)


def check_explainable(model: nn.Module) -> None:
    """Refuse a model without feature maps, such as an exported file.

    Raises:
        ModelError: it has none.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise ModelError(
            "heat maps need a PyTorch model with feature maps, which this is not",
            hint="name the run that the file was made from",
        )


def _as_maps(timm_model: Any, features: Tensor) -> Tensor:
    """Bring features to (B, D, H, W)."""
    if features.ndim == 4:
        width = timm_model.num_features
        channels_last = features.shape[-1] == width != features.shape[1]
        return features.permute(0, 3, 1, 2) if channels_last else features
    tokens = features[:, getattr(timm_model, "num_prefix_tokens", 0) :]
    embedding = getattr(timm_model, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if grid is None or grid[0] * grid[1] != tokens.shape[1]:
        raise ModelError("the tokens of this model are no grid, so it has no heat maps")
    columns = tokens.transpose(1, 2)
    return columns.reshape(*columns.shape[:2], *grid)


def measure_blur(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    outputs: Sequence[int],
    activate: Callable[[Tensor], Tensor],
) -> tuple[float, float]:
    """Measure whether heat maps name what matters: blur it, and blur as much elsewhere.

    The pixels of each image are put into four equal parts by their heat, and each part is blurred
    by itself.

    Args:
        model: the model.
        images: (B, C, H, W) float, the model's input.
        maps: (B, h, w) float, the heat maps.
        outputs: index of the output that each map is of.
        activate: function from (B, K) outputs to probabilities.

    Returns:
        How much the probability falls if the hottest part is blurred, and if one of the other
        three is; means over the images.
    """
    sides = images.shape[-2:]
    size = max(3, int(max(sides) / 8) | 1)  # odd, wide enough to remove what can be recognised
    blurred = V.gaussian_blur(images, [size, size], [size / 3, size / 3])
    heat = F.interpolate(maps[:, None], size=tuple(sides), mode="bilinear", align_corners=False)
    # Ranks, not quantiles: the coldest pixels are all 0.
    ranks = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    parts = (ranks * _PARTS // ranks.shape[1]).reshape(-1, 1, *sides)
    rows = torch.arange(len(images))
    with torch.inference_mode(), evaluating(model):
        before = activate(model(images))[rows, torch.tensor(outputs)]
        drops = [
            before
            - activate(model(torch.where(parts == part, blurred, images)))[
                rows, torch.tensor(outputs)
            ]
            for part in range(_PARTS)
        ]
    means = [float(drop.mean()) for drop in drops]
    return means[0], sum(means[1:]) / (_PARTS - 1)
