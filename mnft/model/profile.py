"""The cost of a model: its parameters, and its multiply-accumulates (MACs) for one image."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mnft.model  # noqa: F401 - registers LeNet-5 and further widths with timm
from mnft.errors import ModelError, foreign
from mnft.model.freeze import evaluating

DEFAULT_PATTERNS = ("lenet5", "mobilenetv[1-4]_*")


def profile_model(
    name: str, *, img_size: int | None = None, num_classes: int | None = None
) -> ModelProfile:
    """Count the parameters and MACs of a timm model, without weights and mostly without memory.

    Args:
        name: a name of `timm.list_models()`, with or without a tag (`mobilenetv2_100.ra_in1k`).
        img_size: height and width of the input in pixels; None for the model's own size.
        num_classes: number of classes; None for the model's own number.

    Raises:
        ModelError: the name is unknown, or the model cannot take images of that size.
    """
    if not timm.is_model(name):
        raise ModelError(f"unknown model {name!r}", hint=_suggest(name))
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tagged = timm.list_models(f"{architecture}.*", include_tags=True)
        hint = f"its tags are {', '.join(tagged)}; without a tag, timm's default is taken"
        raise ModelError(f"unknown tag in {name!r}", hint=hint) from error
    channels, height, width = cfg.input_size
    args: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if img_size is not None:
        height = width = img_size
        if cfg.fixed_input_size:
            args["img_size"] = img_size
    input_size = (channels, height, width)
    what = f"{name} cannot be measured on images of {height}x{width} pixels"
    hint = f"its own size is {cfg.input_size[1]}x{cfg.input_size[2]}; try a multiple of 32"
    try:
        with foreign(what, ModelError, hint=hint):
            params, macs = _measure_on("meta", name, args, input_size)
    except ModelError:
        # Some models read values while they are built or run, which "meta" tensors do not have.
        with foreign(what, ModelError, hint=hint):
            params, macs = _measure_on("cpu", name, args, input_size)
    return ModelProfile(name, params, macs, input_size, bool(timm.is_model_pretrained(name)))


def list_profiles(
    pattern: str | None = None, *, img_size: int | None = None, num_classes: int | None = None
) -> Iterator[ModelProfile]:
    """Profile the models whose names match a pattern, one by one, in timm's order.

    Args:
        pattern: shell wildcards over timm's names (`mobilenetv2*`); None for MobileNetV1 to V4
            and LeNet-5.
        img_size: height and width of the input in pixels; None for each model's own size.
        num_classes: number of classes; None for each model's own number.

    Raises:
        ModelError: no name matches.
    """
    patterns = DEFAULT_PATTERNS if pattern is None else (pattern,)
    names = [
        name for name in timm.list_models() if any(fnmatch.fnmatchcase(name, p) for p in patterns)
    ]
    if not names:
        raise ModelError(f"no model matches {pattern!r}", hint=_suggest(pattern or ""))
    return (profile_model(name, img_size=img_size, num_classes=num_classes) for name in names)


def compute_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates of one image: convolutions, matrix products, attention.

    This is half of the floating-point operations that PyTorch counts. The model runs once in
    evaluation mode, on its own device (also on `meta`), and gets its mode back afterwards.

    Args:
        model: a model that takes images (1, C, H, W) in the type of its parameters.
        input_size: (C, H, W) of the model's input.
    """
    like = next(model.parameters())
    image = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    # Detached: the counter hooks inputs that require grad, and CaiT passes a parameter on as one.
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with (
        torch.inference_mode(),
        evaluating(model),
        sdpa_kernel(SDPBackend.MATH),  # torch 2.11 does not count the CPU's fused attention
        FlopCounterMode(display=False) as counter,
    ):
        torch.func.functional_call(model, parameters, (image,))
    return int(counter.get_total_flops()) // 2


def _measure_on(
    device: str, name: str, args: dict[str, Any], input_size: tuple[int, int, int]
) -> tuple[int, int]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, **args)
        params = sum(parameter.numel() for parameter in model.parameters())
        return params, compute_macs(model, input_size)


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "the names are those of timm.list_models(); wildcards help: mobilenetv3*"


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The parameters of a model, and its multiply-accumulates for one image of `input_size`."""

    name: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    pretrained: bool
