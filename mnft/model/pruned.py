"""Pruned models: an architecture with fewer channels, rebuilt from the shapes of its tensors.

A pruned model folder is a model folder whose config.json says `"mnft": {"pruned": true}`: timm,
which ignores that key, builds the architecture at its full width, and this module cuts it to the
shapes in model.safetensors. No code and no pickle is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnft.errors import ModelError, foreign

MARK = {"pruned": True}

Shape = tuple[int, ...]
# Widths that timm's models and their heads keep, for `reset_classifier`.
_HEAD_WIDTHS = ("head_hidden_size", "num_features", "in_features", "hidden_size")


def is_pruned(config: Any) -> bool:
    """Whether the content of a config.json has the mark of a pruned model."""
    mark = config.get("mnft") if isinstance(config, Mapping) else None
    return isinstance(mark, Mapping) and mark.get("pruned") is True


def find_pruned(folder: Path) -> Path | None:
    """The weights of a pruned model folder; None where the folder is something else."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder / "model.safetensors" if is_pruned(config) else None


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shape of each tensor of a safetensors file; reads its header alone.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error


def load_pruned(model: nn.Module, path: Path, input_size: tuple[int, int, int]) -> None:
    """Cut a model to the shapes of a weights file, and load the file: all of it, or an error.

    Args:
        model: the architecture at its full width; changed in place.
        path: a safetensors file.
        input_size: (C, H, W) of an image that the model takes.

    Raises:
        ModelError: the file is damaged, or does not belong to the architecture.
    """
    shrink(model, read_shapes(path), input_size)
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path} does not fit: {error}") from error


def shrink(model: nn.Module, shapes: Mapping[str, Shape], input_size: tuple[int, int, int]) -> None:
    """Cut the tensors of a timm model to smaller shapes and set its widths right.

    The classifier keeps its outputs and the first convolution its inputs, whatever the shapes say:
    they follow from the classes and the images. Of every tensor the leading part is kept, so a
    model with random weights stays one.

    Args:
        model: changed in place; spoilt where an error is raised.
        shapes: by name of the state dict; tensors that have no shape here stay as they are.
        input_size: (C, H, W) of an image, to run the model once.

    Raises:
        ModelError: a tensor would have to grow or change its kind, or the layers do not fit
            together afterwards.
    """
    full_width = _head_width(model)
    own_inputs, own_outputs = _names(model, "first_conv"), _names(model, "classifier")
    for path, module in model.named_modules():
        before = {key: tuple(tensor.shape) for key, tensor in _tensors(module)}
        for key, tensor in list(_tensors(module)):
            name = f"{path}.{key}" if path else key
            shape = shapes.get(name, tuple(tensor.shape))
            if any(path == head or path.startswith(f"{head}.") for head in own_outputs):
                shape = (*tensor.shape[:1], *shape[1:])
            if path in own_inputs and key == "weight":
                shape = (*shape[:1], *tensor.shape[1:2], *shape[2:])
            _cut(module, key, tensor, shape, name)
        _set_widths(module, before)
    _settle(model, input_size, full_width)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _names(model: nn.Module, role: str) -> tuple[str, ...]:
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get(role) or ()
    return (names,) if isinstance(names, str) else tuple(names)


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
    """Bring a layer's own numbers in line with its tensors."""
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


def _settle(model: Any, input_size: tuple[int, int, int], full_width: int | None) -> None:
    """Run the model once, which shows that its layers fit, and set the widths of its head."""
    like = next(model.parameters())
    image = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    what = f"the layers of this pruned {type(model).__name__} do not fit together"
    hint = "the weights belong to another architecture or data.img_size, or are damaged"
    try:
        with foreign(what, ModelError, hint=hint), torch.inference_mode():
            features = model.forward_features(image)
            model.forward_head(features)
    finally:
        for module, training in modes:
            module.training = training
    _set_head_widths(model, full_width, features)


def _set_head_widths(model: Any, full: int | None, features: Any) -> None:
    """Set what timm's `reset_classifier` reads: the widths of features and of the head."""
    head, width = model.get_classifier(), _head_width(model)
    if full is not None:
        owners = [module for module in model.modules() if head in list(module.children())]
        for module in {id(module): module for module in (*owners, model)}.values():
            # Of the widths that it keeps, those that equalled the classifier's follow it.
            for name in _HEAD_WIDTHS:
                if getattr(module, name, None) == full:
                    setattr(module, name, width)
    if isinstance(features, Tensor) and hasattr(model, "num_features"):
        channels_first = features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW"
        model.num_features = features.shape[1 if channels_first else -1]


def _head_width(model: Any) -> int | None:
    """The inputs of the classifier; None where it is not one layer."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if isinstance(head, nn.Linear):
        return head.in_features
    return head.in_channels if isinstance(head, nn.Conv2d) else None
