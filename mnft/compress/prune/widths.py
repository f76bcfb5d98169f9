"""How wide each layer of a network may stay: the MACs of pruned widths, counted without pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mnft.model.freeze import evaluating

_SEARCH_STEPS = 16
_LARGEST_RATIO = 0.95


@dataclass(slots=True)
class _Use:
    """What one group of channels is to one layer: that many of its outputs and inputs."""

    outputs: int = 0
    inputs: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """The MACs of a network as a function of the widths of its groups of layers.

    Attributes:
        sizes: channels of each group, at full width.
        layers: the convolutions and linear layers that the groups reach.
        places: outputs of each of them, over the image.
        uses: for each group, its part in each layer.
    """

    sizes: list[int]
    layers: list[nn.Conv2d | nn.Linear]
    places: list[int]
    uses: list[dict[int, _Use]]

    def count(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates of these layers for one image."""
        gone = [[0.0, 0.0] for _ in self.layers]
        for size, width, uses in zip(self.sizes, widths, self.uses, strict=True):
            for number, use in uses.items():
                gone[number][0] += use.outputs * (1 - width / size)
                gone[number][1] += use.inputs * (1 - width / size)
        numbers = zip(self.layers, self.places, gone, strict=True)
        return sum(_count_layer(layer, places, *away) for layer, places, away in numbers)


def measure_costs(
    graph: Any, groups: Sequence[Any], model: nn.Module, image: torch.Tensor
) -> Costs:
    """Read from a dependency graph which group reaches which layer, and run the model once.

    Args:
        graph: torch-pruning's, of `model`.
        groups: its groups.
        model: stays as it is.
        image: (1, C, H, W).
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    sizes, uses = [], []
    for group in groups:
        sizes.append(len(group[0].idxs) // count_parts(graph, group))
        uses.append(_find_uses(graph, group, numbers))
    return Costs(sizes, layers, _measure_places(model, layers, image), uses)


def choose_widths(costs: Costs, max_macs: int, round_to: int) -> list[int] | None:
    """The widest groups that leave at most `max_macs`; None where that cannot be reached.

    All groups lose the same share, as near as multiples of `round_to` allow.
    """

    def widths_at(ratio: float) -> list[int]:
        return [round_channels(size, ratio, round_to) for size in costs.sizes]

    low, high = 0.0, _LARGEST_RATIO
    if costs.count(widths_at(high)) > max_macs:
        return None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        fits = costs.count(widths_at(middle)) <= max_macs
        low, high = (low, middle) if fits else (middle, high)
    # Groups of one size change at the same ratio: give back those that there is room for.
    widths = widths_at(high)
    for place, wider in enumerate(widths_at(low)):
        trial = [*widths[:place], wider, *widths[place + 1 :]]
        widths = trial if costs.count(trial) <= max_macs else widths
    return widths


def count_least(costs: Costs, round_to: int) -> int:
    """The MACs that are left where every group is cut as far as it goes."""
    return costs.count([round_channels(size, _LARGEST_RATIO, round_to) for size in costs.sizes])


def round_channels(size: int, ratio: float, round_to: int) -> int:
    """The channels to keep of `size`: the nearest multiple, at least one."""
    return min(size, round_to * max(1, math.floor(size * (1 - ratio) / round_to + 0.5)))


def count_parts(graph: Any, group: Any) -> int:
    """Groups of grouped convolutions and normalisations, which must stay of one size."""
    counts = [1]
    for dependency, _ in group:
        layer = dependency.target.module
        pruner = graph.get_pruner_of_module(layer)
        if pruner is None or _is_depthwise(layer):
            continue
        outputs = graph.is_out_channel_pruning_fn(dependency.handler)
        count = pruner.get_out_channel_groups if outputs else pruner.get_in_channel_groups
        counts.append(count(layer))
    return max(counts)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.out_channels


def _find_uses(graph: Any, group: Any, numbers: dict[int, int]) -> dict[int, _Use]:
    uses: dict[int, _Use] = {}
    for dependency, indices in group:
        number = numbers.get(id(dependency.target.module))
        if number is None:
            continue
        use = uses.setdefault(number, _Use())
        if graph.is_out_channel_pruning_fn(dependency.handler):
            use.outputs = len(set(indices))
        else:
            use.inputs = len(set(indices))
    return uses


def _count_layer(
    layer: nn.Conv2d | nn.Linear, places: int, outputs_gone: float, inputs_gone: float
) -> int:
    outputs, inputs, *kernel = layer.weight.shape
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if not _is_depthwise(layer):
        inputs -= round(inputs_gone / groups)
    return (outputs - round(outputs_gone)) * inputs * math.prod(kernel) * places


def _measure_places(
    model: nn.Module, layers: Sequence[nn.Conv2d | nn.Linear], image: torch.Tensor
) -> list[int]:
    """For each layer how often its weights are used: outputs over the image, without channels."""
    places = [0] * len(layers)

    def hook(number: int, channels: int) -> Callable[..., None]:
        def count(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            places[number] += output.numel() // channels

        return count

    handles: list[RemovableHandle] = []
    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_hook(hook(number, layer.weight.shape[0])))
    try:
        with torch.inference_mode(), evaluating(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return places
