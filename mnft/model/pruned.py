"""Pruned models: an architecture with fewer channels, rebuilt from the shapes of its tensors.

A pruned model folder is a model folder whose config.json says `"mnft": {"pruned": true}`: timm
ignores that key and builds the architecture at its full width; this module then cuts it to the
shapes in model.safetensors. Neither code nor a pickle is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.errors import ModelError, foreign
from mnft.model.freeze import evaluating
from mnft.model.weights import layer_names

MARK = {"pruned": True}

Shape = tuple[int, ...]
# Attributes in which timm's models and heads keep the widths that `reset_classifier` reads.
_HEAD_WIDTHS = ("head_hidden_size", "num_features", "in_features", "hidden_size")


def is_pruned(config: Any) -> bool:
    """Whether the content of a config.json marks a pruned model."""
    mark = config.get("mnft") if isinstance(config, Mapping) else None
    return isinstance(mark, Mapping) and mark.get("pruned") is True


def read_shapes(path: Path) -> dict[str, Shape]:
    """Read the shape of each tensor of a safetensors file; only the header is read.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error


def load_pruned(model: nn.Module, path: Path, input_size: tuple[int, int, int]) -> None:
    """Cut a model to the shapes of the tensors in a weights file, and load them all.

    Args:
        model: the architecture at its full width; changed in place.
        path: a safetensors file.
        input_size: (C, H, W) of the model's input.

    Raises:
        ModelError: the file is damaged, or does not belong to the architecture.
    """
    shrink(model, read_shapes(path), input_size)
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path} does not fit: {error}") from error


def shrink(model: nn.Module, shapes: Mapping[str, Shape], input_size: tuple[int, int, int]) -> None:
    """Cut the tensors of a timm model to smaller shapes, and its layers' widths with them.

    The number of classes and the number of input channels stay, whatever the shapes say: they
    depend on the data. The leading part of every tensor is kept, so random weights stay random.

    Args:
        model: the model to cut, in place; it is unusable if an error is raised.
        shapes: a shape for each name of the state dict; tensors that have none stay as they are.
        input_size: (C, H, W) of the model's input. The model is run once to see that it works.

    Raises:
        ModelError: a tensor would have to grow or change its kind, or the layers do not fit
            together afterwards.
    """
    full_width = _head_width(model)
    first_convs, classifiers = layer_names(model, "first_conv"), layer_names(model, "classifier")
    for path, module in model.named_modules():
        before = {key: tuple(tensor.shape) for key, tensor in _tensors(module)}
        for key, tensor in list(_tensors(module)):
            name = f"{path}.{key}" if path else key
            shape = shapes.get(name, tuple(tensor.shape))
            if any(path == head or path.startswith(f"{head}.") for head in classifiers):
                shape = (*tensor.shape[:1], *shape[1:])
            if path in first_convs and key == "weight":
                shape = (*shape[:1], *tensor.shape[1:2], *shape[2:])
            _cut(module, key, tensor, shape, name)
        _set_widths(module, before)
    _run_and_set_head_widths(model, input_size, full_width)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _cut(module: nn.Module, key: str, tensor: Tensor, shape: Shape, name: str) -> None:
    old = tuple(tensor.shape)
    if shape == old:
        return
    # Kernels are never pruned: only the first two dimensions count channels.
    fits = len(shape) == len(old) and shape[2:] == old[2:]
    if not fits or any(not 0 < new <= full for new, full in zip(shape, old, strict=True)):
        raise ModelError(
            f"{name} has the shape {shape}, which is no part of {old}, the architecture's own",
            hint="the weights belong to another architecture, or to another data.img_size",
        )
    part = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(tensor, nn.Parameter):
        part = nn.Parameter(part, requires_grad=tensor.requires_grad)
    setattr(module, key, part)


def _set_widths(module: Any, before: Mapping[str, Shape]) -> None:
    """Set the attributes in which a layer keeps its widths to the shapes of its tensors."""
    after = {key: tuple(tensor.shape) for key, tensor in _tensors(module)}
    if after == before:
        return
    if isinstance(module, nn.Conv2d):
        out_channels, in_channels = after["weight"][:2]
        if 1 < module.groups == module.out_channels:  # depthwise
            module.groups = out_channels
        module.out_channels = out_channels
        module.in_channels = in_channels * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = after["weight"]
    elif isinstance(module, _BatchNorm):
        module.num_features = next(iter(after.values()))[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = after["weight"][0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = after["weight"]


def _run_and_set_head_widths(
    model: Any, input_size: tuple[int, int, int], full_width: int | None
) -> None:
    """Run the model once to see that its layers fit, then set the widths of its features and head.

    timm's `reset_classifier` reads these widths when the number of classes changes later.
    """
    like = next(model.parameters())
    image = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    what = f"the layers of this pruned {type(model).__name__} do not fit together"
    hint = "the weights belong to another architecture or data.img_size, or are damaged"
    with foreign(what, ModelError, hint=hint), torch.inference_mode(), evaluating(model):
        features = model.forward_features(image)
        model.forward_head(features)
    head, width = model.get_classifier(), _head_width(model)
    if full_width is not None:
        # Attributes that had the classifier's width follow it: those of the model, and those of
        # the module that holds the classifier.
        owners = [module for module in model.modules() if head in list(module.children())]
        for module in {id(module): module for module in (*owners, model)}.values():
            for name in _HEAD_WIDTHS:
                if getattr(module, name, None) == full_width:
                    setattr(module, name, width)
    if isinstance(features, Tensor) and hasattr(model, "num_features"):
        channels_first = features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW"
        model.num_features = features.shape[1 if channels_first else -1]


def _head_width(model: Any) -> int | None:
    """The number of inputs of the classifier; None if it is not a single layer."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if isinstance(head, nn.Linear):
        return head.in_features
    return head.in_channels if isinstance(head, nn.Conv2d) else None
