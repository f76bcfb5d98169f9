"""What a model costs: its parameters, and its multiply-accumulates for one image."""

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

DEFAULT_PATTERNS = ("lenet5", "mobilenetv[1-4]_*")


def profile_model(
    name: str, *, img_size: int | None = None, num_classes: int | None = None
) -> ModelProfile:
    """Measure a model that timm knows by name, without its weights and mostly without memory.

    Args:
        name: a name of `timm.list_models()`, with or without a tag (`mobilenetv2_100.ra_in1k`).
        img_size: height and width in pixels; None for the size in the model's own configuration.
        num_classes: classes; None for the model's own number.

    Raises:
        ModelError: the name is unknown, or the model cannot take images of that size.
    """
    cfg = _find_cfg(name)
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
    """Measure the models whose names match, one by one, in timm's order.

    Args:
        pattern: shell wildcards over timm's names (`mobilenetv2*`); None for MobileNetV1 to V4
            and LeNet-5.
        img_size: as in `profile_model`.
        num_classes: as in `profile_model`.

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

    Half of PyTorch's own count of floating-point operations. The model runs once, in evaluation
    mode, on its own device (`meta` too), and is given back as it came.

    Args:
        model: takes images (1, C, H, W) in the type of its parameters.
        input_size: (C, H, W).
    """
    like = next(model.parameters())
    image = torch.zeros(1, *input_size, device=like.device, dtype=like.dtype)
    # Detached, because the counter hooks inputs that require grad, and CaiT hands on a parameter.
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # As matrix products: torch 2.11 does not count the CPU's fused attention.
        with (
            torch.inference_mode(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            torch.func.functional_call(model, parameters, (image,))
    finally:
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops()) // 2


def _measure_on(
    device: str, name: str, args: dict[str, Any], input_size: tuple[int, int, int]
) -> tuple[int, int]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, **args)
        params = sum(parameter.numel() for parameter in model.parameters())
        return params, compute_macs(model, input_size)


def _find_cfg(name: str) -> Any:
    if not timm.is_model(name):
        raise ModelError(f"unknown model {name!r}", hint=_suggest(name))
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tagged = timm.list_models(f"{architecture}.*", include_tags=True)
        hint = f"its tags are {', '.join(tagged)}; without a tag, timm's default is taken"
        raise ModelError(f"unknown tag in {name!r}", hint=hint) from error


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "the names are those of timm.list_models(); wildcards help: mobilenetv3*"


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a model costs: parameters, and multiply-accumulates of one image of `input_size`."""

    name: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    pretrained: bool
