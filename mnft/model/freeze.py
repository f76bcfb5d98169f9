"""Which part of a model learns; what is frozen keeps its weights and its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.errors import ModelError


def freeze(model: nn.Module, what: str | int) -> list[str]:
    """Stop gradients of a part of a timm model.

    Args:
        model: a timm model.
        what: "none", "backbone" (all but the classifier), or the number of leading groups, which
            timm's `group_matcher(coarse=True)` tells: the stem, then the stages.

    Returns:
        Names of the frozen parameters.

    Raises:
        ModelError: more groups than the model has, or nothing left to learn.
    """
    frozen = _frozen_names(model, what)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"found {what}, which leaves nothing to learn", key="model.freeze")
    return sorted(frozen)


def set_training_mode(model: nn.Module, *, freeze_batchnorm: bool = False) -> None:
    """Put a model in training mode, but for the modules whose parameters are all frozen.

    Those stay in evaluation mode: BatchNorm keeps its statistics, dropout inside does nothing.

    Args:
        model: changed in place.
        freeze_batchnorm: let all BatchNorm layers keep their statistics; their scales and shifts
            learn where they are not frozen.
    """
    model.train()
    for module in model.modules():
        if freeze_batchnorm and isinstance(module, _BatchNorm):
            module.eval()
            continue
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _frozen_names(model: Any, what: str | int) -> set[str]:
    if what == "none":
        return set()
    if what == "backbone":
        head = {id(parameter) for parameter in _classifier(model).parameters()}
        return {name for name, p in model.named_parameters() if id(p) not in head}
    groups: dict[int, list[str]] = group_parameters(model, model.group_matcher(coarse=True))
    order = sorted(groups)
    # The last group holds what comes after the stages: the classifier, its norm and convolution.
    if int(what) >= len(order):
        raise ModelError(
            f"found {what}, expected at most {len(order) - 1}: this model has the stem and "
            f"{len(order) - 2} stages before its head",
            key="model.freeze",
        )
    return {name for group in order[: int(what)] for name in groups[group]}


def _classifier(model: Any) -> nn.Module:
    classifier: nn.Module | tuple[nn.Module, ...] = model.get_classifier()
    return nn.ModuleList(classifier) if isinstance(classifier, tuple) else classifier


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module gets back the mode that it had."""
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in mode.items():
            module.training = training
