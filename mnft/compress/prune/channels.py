"""Structured pruning: the least important channels go until a share of the MACs is left.

Channels that belong together (through residual additions, depthwise layers, concatenations) are
found by torch-pruning's dependency graph (Fang et al., "DepGraph", 2023) and go together. Every
layer loses the same share, rounded to a multiple: pruned to odd widths, MobileNetV2 was slower in
ONNX Runtime than unpruned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.compress.prune.widths import (
    Costs,
    choose_widths,
    count_least,
    count_parts,
    measure_costs,
)
from mnft.data.batches.batch import Batch
from mnft.errors import ExportError, ModelError
from mnft.model.freeze import evaluating
from mnft.model.profile import compute_macs

Importance = Literal["taylor", "magnitude"]

# What torch-pruning was seen to raise on models that it does not understand.
_REFUSED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A model with fewer channels.

    Attributes:
        model: a pruned copy, in evaluation mode.
        macs: multiply-accumulates of one image.
    """

    model: nn.Module
    macs: int


def check_available() -> None:
    """Refuse to begin where torch-pruning is missing.

    Raises:
        ExportError: it is, with what to install.
    """
    _import_library()


def plan_targets(target: float, steps: int | None) -> list[float]:
    """The share of the MACs after each step, evenly in proportion; the last is `target`.

    Args:
        target: share in (0, 1).
        steps: None chooses one to 0.6, two to 0.4, three below.
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
) -> Pruned:
    """Remove channels until a model has at most `max_macs`; the classifier keeps its outputs.

    Args:
        model: a timm model; stays as it is. For `taylor` its parameters hold gradients.
        input_size: (C, H, W) of an image.
        max_macs: multiply-accumulates of one image that may be left.
        round_to: layers keep a multiple of this many channels.
        importance: `magnitude` is the L2 norm of a group of weights; `taylor` the change of the
            loss that its removal means, to the first order (Molchanov et al., 2019).

    Returns:
        The pruned copy, as close below `max_macs` as whole channels allow.

    Raises:
        ExportError: torch-pruning is missing.
        ModelError: it cannot follow the model, or so few MACs cannot be reached.
    """
    tp = _import_library()
    score = (
        tp.importance.GroupTaylorImportance()
        if importance == "taylor"
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    full = compute_macs(model, input_size)
    costs = _measure(tp, model, input_size)
    # What is computed in other layers than convolutions and linear ones is taken to stay.
    rest = full - costs.count(costs.sizes)
    widths = choose_widths(costs, max_macs - rest, round_to)
    if widths is None:
        raise _out_of_reach(full, max_macs, count_least(costs, round_to) + rest, round_to)
    pruned = _remove(tp, model, input_size, widths, score)
    macs = compute_macs(pruned, input_size)
    if macs > max_macs:
        raise ModelError(
            f"{type(model).__name__} has {macs / full:.1%} of its MACs after pruning, expected at "
            f"most {max_macs / full:.1%}: its layers depend on one another in an unknown way",
            key="prune.macs",
        )
    return Pruned(pruned, macs)


def add_gradients(model: nn.Module, batches: Iterable[Batch], num_images: int) -> None:
    """Add the gradients of the cross-entropy on some images to a model's parameters.

    Args:
        model: in evaluation mode for it, so that its statistics stay; given back as it came.
        batches: of training images, with plain or mixed targets.
        num_images: after which to stop.
    """
    with evaluating(model), torch.enable_grad():
        for batch in _take(batches, num_images):
            loss = F.cross_entropy(model(batch.images), batch.targets, reduction="sum")
            (loss / num_images).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is None:  # of a layer that does not act on the outputs
            parameter.grad = torch.zeros_like(parameter)


def estimate_statistics(model: nn.Module, batches: Iterable[Batch], num_images: int) -> None:
    """Measure the statistics of BatchNorm anew: those of the wider model are wrong now.

    Args:
        model: changed in place; its mode stays.
        batches: of training images.
        num_images: after which to stop.
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
    done = 0
    for batch in batches:
        if done >= num_images:
            return
        done += len(batch.images)
        if len(batch.images) > 1:
            yield batch


def _import_library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ExportError(
            "pruning needs torch-pruning, which is not installed",
            hint="pip install 'mnft[prune]'",
        ) from error
    return torch_pruning


def _out_of_reach(full: int, max_macs: int, least: int, round_to: int) -> ModelError:
    return ModelError(
        f"{max_macs / full:.1%} of the MACs cannot be reached: with every layer cut as far as "
        f"multiples of {round_to} channels allow, {least / full:.1%} are left",
        hint="a smaller prune.round_to, a larger prune.macs, or a smaller architecture",
        key="prune.macs",
    )


def _measure(tp: Any, model: nn.Module, input_size: tuple[int, int, int]) -> Costs:
    with _explaining(model):
        twin = copy.deepcopy(model)
        graph, groups = _build_groups(tp, twin, input_size)
        return measure_costs(graph, groups, twin, _example(twin, input_size))


def _remove(
    tp: Any,
    model: nn.Module,
    input_size: tuple[int, int, int],
    widths: Sequence[int],
    score: Any,
) -> nn.Module:
    """A copy of a model whose groups of layers keep their `widths` most important channels."""
    pruned = _copy_with_gradients(model).eval()
    with _explaining(model):
        graph, groups = _build_groups(tp, pruned, input_size)
        for group, width in zip(groups, widths, strict=True):
            _prune_group(graph, group, width, score)
        with torch.inference_mode():
            pruned(_example(pruned, input_size))
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def _build_groups(tp: Any, model: nn.Module, input_size: tuple[int, int, int]) -> tuple[Any, Any]:
    """The dependency graph of a model, and its groups of layers but for the classifier's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(
            model.requires_grad_(True).eval(), example_inputs=_example(model, input_size)
        )
        return graph, list(graph.get_all_groups(ignored_layers=_classifier_layers(model)))


def _example(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    like = next(model.parameters())
    return torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)


@contextmanager
def _explaining(model: nn.Module) -> Iterator[None]:
    """Say what it means when torch-pruning fails."""
    try:
        yield
    except _REFUSED as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"the channels of {type(model).__name__} cannot be pruned: {reason}",
            hint="convolutional networks can, such as MobileNets, EfficientNets, ResNets and "
            "ConvNeXts; those with attention cannot",
        ) from error


def _copy_with_gradients(model: nn.Module) -> nn.Module:
    pruned = copy.deepcopy(model)
    for own, other in zip(pruned.parameters(), model.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    return pruned


def _classifier_layers(model: Any) -> list[nn.Module]:
    classifier = model.get_classifier()
    heads = classifier if isinstance(classifier, Sequence) else [classifier]
    return [layer for head in heads for layer in head.modules()]


def _prune_group(graph: Any, group: Any, width: int, score: Any) -> None:
    """Remove channels of one group: the same number of each of its convolutions' groups."""
    dependency, indices = group[0]
    parts = count_parts(graph, group)
    size = len(indices) // parts
    scores = torch.arange(len(indices)) if score is None else score(group)
    if width >= size or scores is None:
        return
    order = scores.float().view(parts, -1).mean(0).argsort()[: size - width]
    chosen = [int(place) + part * size for part in range(parts) for place in order]
    smaller = graph.get_pruning_group(dependency.target.module, dependency.handler, chosen)
    if graph.check_pruning_group(smaller):
        smaller.prune()
