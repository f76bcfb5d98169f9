"""Freezing: which part of a model is trained, and which keeps its weights and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.errors import ModelError


def freeze(model: nn.Module, what: str | int) -> list[str]:
    """Freeze a part of a timm model: its parameters get no gradients.

    Args:
        model: a timm model; changed in place.
        what: "none", "backbone" (everything except the classifier), or the number of leading
            groups of timm's `group_matcher(coarse=True)`: the stem, then the stages.

    Returns:
        The names of the frozen parameters.

    Raises:
        ModelError: the model has fewer groups, or nothing would be left to train.
    """
    timm_model: Any = model
    frozen: set[str] = set()
    if what == "backbone":
        classifier = timm_model.get_classifier()
        parts = classifier if isinstance(classifier, tuple) else (classifier,)
        head = {id(parameter) for part in parts for parameter in part.parameters()}
        frozen = {name for name, p in model.named_parameters() if id(p) not in head}
    elif what != "none":
        matcher = timm_model.group_matcher(coarse=True)
        groups: dict[int, list[str]] = group_parameters(model, matcher)
        order = sorted(groups)
        # The last group is what follows the stages: the classifier, its norm and convolution.
        if int(what) >= len(order):
            raise ModelError(
                f"found {what}, expected at most {len(order) - 1}: this model has the stem and "
                f"{len(order) - 2} stages before its head",
                key="model.freeze",
            )
        frozen = {name for group in order[: int(what)] for name in groups[group]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"found {what}, which leaves nothing to learn", key="model.freeze")
    return sorted(frozen)


def set_training_mode(model: nn.Module, *, freeze_batchnorm: bool = False) -> None:
    """Put a model in training mode, except the modules whose parameters are all frozen.

    Those stay in evaluation mode: BatchNorm keeps its statistics, and dropout does nothing.

    Args:
        model: a model; changed in place.
        freeze_batchnorm: whether all BatchNorm layers keep their statistics. Their scales and
            shifts are still trained unless they are frozen.
    """
    model.train()
    for module in model.modules():
        if freeze_batchnorm and isinstance(module, _BatchNorm):
            module.eval()
            continue
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a block; then each module gets its own mode back."""
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in mode.items():
            module.training = training
