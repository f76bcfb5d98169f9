"""Structured pruning: remove the least important channels until a fraction of the MACs is left.

Channels that belong together (through residual additions, depthwise layers, concatenations) are
found by torch-pruning's dependency graph (Fang et al., "DepGraph", 2023) and are removed together.
Every layer loses the same fraction, rounded to a multiple: pruned to odd widths, MobileNetV2 was
slower in ONNX Runtime than unpruned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.compress.prune.widths import choose_widths, count_parts, measure_costs, narrowest
from mnft.data.batches.batch import Batch
from mnft.errors import ExportError, ModelError, foreign
from mnft.model.freeze import evaluating
from mnft.model.profile import compute_macs

Importance = Literal["taylor", "magnitude"]


def import_torch_pruning() -> Any:
    """The package torch-pruning.

    Raises:
        ExportError: it is not installed; the hint says what to install.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ExportError(
            "pruning needs torch-pruning, which is not installed",
            hint="pip install 'mnft[prune]'",
        ) from error
    return torch_pruning


def plan_targets(target: float, steps: int | None) -> list[float]:
    """The fraction of the MACs after each step, a geometric series that ends at `target`.

    Args:
        target: a fraction in (0, 1).
        steps: the number of steps; None chooses one down to 0.6, two down to 0.4, three below.
    """
    if steps is None:
        steps = 1 if target >= 0.6 else 2 if target >= 0.4 else 3
    return [target ** (step / steps) for step in range(1, steps)] + [target]


def prune(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    max_macs: int,
    round_to: int,
    importance: Importance,
) -> nn.Module:
    """Remove channels until a model has at most `max_macs`; the classifier keeps its outputs.

    Args:
        model: a timm model, which is not changed. For `taylor` its parameters hold gradients.
        input_size: (C, H, W) of an image.
        max_macs: the most multiply-accumulates of one image that may be left.
        round_to: layers keep a multiple of this many channels.
        importance: `magnitude` is the L2 norm of a group of weights; `taylor` is the change of the
            loss that its removal means, to the first order (Molchanov et al., 2019).

    Returns:
        A pruned copy in evaluation mode, as close below `max_macs` as whole channels allow.

    Raises:
        ExportError: torch-pruning is not installed.
        ModelError: torch-pruning cannot follow the model, or so few MACs cannot be reached.
    """
    tp = import_torch_pruning()
    full = compute_macs(model, input_size)
    with _refusing(model):
        twin = copy.deepcopy(model)
        image = _example(twin, input_size)
        graph, groups = _build_groups(tp, twin, image)
        costs = measure_costs(graph, groups, twin, image)
    # Layers other than convolutions and linear ones are assumed to cost what they cost before.
    rest = full - costs.count(costs.sizes)
    widths = choose_widths(costs, max_macs - rest, round_to)
    if widths is None:
        least = costs.count(narrowest(costs, round_to)) + rest
        raise ModelError(
            f"{max_macs / full:.1%} of the MACs cannot be reached: with every layer cut as far as "
            f"multiples of {round_to} channels allow, {least / full:.1%} are left",
            hint="a smaller prune.round_to, a larger prune.macs, or a smaller architecture",
            key="prune.macs",
        )

    pruned = _remove(tp, model, input_size, widths, importance)
    macs = compute_macs(pruned, input_size)
    if macs > max_macs:
        raise ModelError(
            f"{type(model).__name__} has {macs / full:.1%} of its MACs after pruning, expected at "
            f"most {max_macs / full:.1%}: its layers depend on one another in an unknown way",
            key="prune.macs",
        )
    return pruned


def _remove(
    tp: Any,
    model: nn.Module,
    input_size: tuple[int, int, int],
    widths: Sequence[int],
    importance: Importance,
) -> nn.Module:
    """A copy of a model whose groups of layers keep their `widths` most important channels."""
    pruned = copy.deepcopy(model).eval()
    for parameter, original in zip(pruned.parameters(), model.parameters(), strict=True):
        # A deep copy has no gradients, which `taylor` reads.
        parameter.grad = None if original.grad is None else original.grad.clone()
    score = (
        tp.importance.GroupTaylorImportance()
        if importance == "taylor"
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    with _refusing(model):
        image = _example(pruned, input_size)
        graph, groups = _build_groups(tp, pruned, image)
        for group, width in zip(groups, widths, strict=True):
            _prune_group(graph, group, width, score)
        with torch.inference_mode():
            pruned(image)
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def add_gradients(model: nn.Module, batches: Iterable[Batch], num_images: int) -> None:
    """Add the gradients of the cross-entropy on some images to a model's parameters.

    Args:
        model: a model, which computes in evaluation mode, so that its BatchNorm statistics stay,
            and gets its own mode back.
        batches: training images, with plain or mixed targets.
        num_images: the number of images after which to stop.
    """
    with evaluating(model), torch.enable_grad():
        for batch in _take(batches, num_images):
            loss = F.cross_entropy(model(batch.images), batch.targets, reduction="sum")
            (loss / num_images).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is None:  # its layer has no effect on the outputs
            parameter.grad = torch.zeros_like(parameter)


def estimate_statistics(model: nn.Module, batches: Iterable[Batch], num_images: int) -> None:
    """Measure the statistics of BatchNorm again: those of the wider model are wrong now.

    Args:
        model: a model, which is changed in place and keeps its mode.
        batches: training images.
        num_images: the number of images after which to stop.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    with torch.inference_mode(), evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # the plain mean over the batches
        for batch in _take(batches, num_images):
            model(batch.images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _take(batches: Iterable[Batch], num_images: int) -> Iterable[Batch]:
    """Batches until they hold `num_images`; BatchNorm cannot take a batch of one image."""
    done = 0
    for batch in batches:
        if done >= num_images:
            return
        done += len(batch.images)
        if len(batch.images) > 1:
            yield batch


def _refusing(model: nn.Module) -> AbstractContextManager[None]:
    """The border to torch-pruning: say what its errors mean for a model."""
    return foreign(
        f"the channels of {type(model).__name__} cannot be pruned",
        ModelError,
        hint="convolutional networks can, such as MobileNets, EfficientNets, ResNets and "
        "ConvNeXts; those with attention cannot",
    )


def _build_groups(tp: Any, model: Any, image: Tensor) -> tuple[Any, Any]:
    """The dependency graph of a model, and its groups of layers except the classifier's."""
    heads = model.get_classifier()
    if not isinstance(heads, Sequence):
        heads = [heads]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(
            model.requires_grad_(True).eval(), example_inputs=image
        )
        ignored = [layer for head in heads for layer in head.modules()]
        return graph, list(graph.get_all_groups(ignored_layers=ignored))


def _example(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    like = next(model.parameters())
    return torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)


def _prune_group(graph: Any, group: Any, width: int, score: Any) -> None:
    """Remove channels of one group: the same number in each part of a grouped convolution."""
    dependency, indices = group[0]
    parts = count_parts(graph, group)
    size = len(indices) // parts
    scores = score(group)
    if width >= size or scores is None:
        return
    order = scores.float().view(parts, -1).mean(0).argsort()[: size - width]
    chosen = [int(place) + part * size for part in range(parts) for place in order]
    smaller = graph.get_pruning_group(dependency.target.module, dependency.handler, chosen)
    if graph.check_pruning_group(smaller):
        smaller.prune()
