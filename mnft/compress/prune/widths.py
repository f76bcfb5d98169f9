"""How wide each layer of a network may stay: the MACs of pruned widths, counted without pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mnft.model.freeze import evaluating

_SEARCH_STEPS = 16
_LARGEST_RATIO = 0.95


@dataclass(slots=True)
class _Use:
    """How many of a layer's output and input channels belong to one group."""

    outputs: int = 0
    inputs: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """The MACs of a network as a function of the widths of its groups of layers.

    Attributes:
        sizes: the channels of each group, at full width.
        layers: the convolutions and linear layers that the groups reach.
        places: for each layer the positions in the image at which it computes an output.
        uses: for each group, its part in each layer.
    """

    sizes: list[int]
    layers: list[nn.Conv2d | nn.Linear]
    places: list[int]
    uses: list[dict[int, _Use]]

    def count(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates of these layers for one image."""
        outputs_gone, inputs_gone = [0.0] * len(self.layers), [0.0] * len(self.layers)
        for size, width, uses in zip(self.sizes, widths, self.uses, strict=True):
            for number, use in uses.items():
                outputs_gone[number] += use.outputs * (1 - width / size)
                inputs_gone[number] += use.inputs * (1 - width / size)
        macs = 0
        for number, (layer, places) in enumerate(zip(self.layers, self.places, strict=True)):
            outputs, inputs, *kernel = layer.weight.shape
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            if not _is_depthwise(layer):  # whose channels have one input each, however many go
                inputs -= round(inputs_gone[number] / groups)
            outputs -= round(outputs_gone[number])
            macs += outputs * inputs * math.prod(kernel) * places
        return macs


def measure_costs(
    graph: Any, groups: Sequence[Any], model: nn.Module, image: torch.Tensor
) -> Costs:
    """Read from a dependency graph which group reaches which layer, and run the model once.

    Args:
        graph: torch-pruning's graph of `model`.
        groups: the groups of that graph.
        model: the network, which is not changed.
        image: (1, C, H, W).
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    sizes, uses = [], []
    for group in groups:
        sizes.append(len(group[0].idxs) // count_parts(graph, group))
        uses.append(parts := dict[int, _Use]())
        for dependency, indices in group:
            number = numbers.get(id(dependency.target.module))
            if number is None:
                continue
            use = parts.setdefault(number, _Use())
            if graph.is_out_channel_pruning_fn(dependency.handler):
                use.outputs = len(set(indices))
            else:
                use.inputs = len(set(indices))

    places = [0] * len(layers)

    def count_places(layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        number = numbers[id(layer)]
        places[number] += output.numel() // layers[number].weight.shape[0]

    handles = [layer.register_forward_hook(count_places) for layer in layers]
    try:
        with torch.inference_mode(), evaluating(model):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return Costs(sizes, layers, places, uses)


def choose_widths(costs: Costs, max_macs: int, round_to: int) -> list[int] | None:
    """The widest groups that leave at most `max_macs`; None where that cannot be reached.

    All groups lose the same fraction, as near as multiples of `round_to` allow.
    """
    low, high = 0.0, _LARGEST_RATIO
    if costs.count(narrowest(costs, round_to)) > max_macs:
        return None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        fits = costs.count(_widths_at(costs, middle, round_to)) <= max_macs
        low, high = (low, middle) if fits else (middle, high)
    # Groups of one size change at the same ratio: give back those that there is room for.
    widths = _widths_at(costs, high, round_to)
    for place, wider in enumerate(_widths_at(costs, low, round_to)):
        trial = [*widths[:place], wider, *widths[place + 1 :]]
        widths = trial if costs.count(trial) <= max_macs else widths
    return widths


def narrowest(costs: Costs, round_to: int) -> list[int]:
    """The widths where every group is cut as far as possible."""
    return _widths_at(costs, _LARGEST_RATIO, round_to)


def _widths_at(costs: Costs, ratio: float, round_to: int) -> list[int]:
    """The channels that stay where each group loses `ratio`: the nearest multiple, at least one."""
    return [
        min(size, round_to * max(1, math.floor(size * (1 - ratio) / round_to + 0.5)))
        for size in costs.sizes
    ]


def count_parts(graph: Any, group: Any) -> int:
    """The parts of grouped convolutions and normalisations, which must stay of equal size."""
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
