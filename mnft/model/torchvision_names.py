"""Rename the tensors of torchvision's MobileNetV2 and V3 weights to timm's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.layers import Conv2dSame
from torch import Tensor, nn

from mnft.errors import ModelError

StateDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TorchvisionLayout:
    """How torchvision names the layers of a MobileNet.

    Attributes:
        name: a name for messages.
        marker: a key that only this layout has.
        head: the name of the last layer.
        model_args: arguments that timm needs to build the same network.
    """

    name: str
    marker: str
    head: str
    model_args: tuple[tuple[str, float], ...] = ()


_TORCHVISION_LAYOUTS = (
    TorchvisionLayout("torchvision-mobilenetv2", "features.1.conv.0.0.weight", "classifier.1"),
    TorchvisionLayout(
        "torchvision-mobilenetv3",
        "features.1.block.0.0.weight",
        "classifier.3",
        (("bn_eps", 1e-3),),
    ),
)


def recognise_torchvision(model: nn.Module, state: StateDict) -> TorchvisionLayout | None:
    """The torchvision layout of a state dict for a timm MobileNet; None if it has another."""
    if not hasattr(model, "conv_stem") or "features.0.0.weight" not in state:
        return None
    return next((layout for layout in _TORCHVISION_LAYOUTS if layout.marker in state), None)


def rename_torchvision(
    model: nn.Module, state: StateDict, layout: TorchvisionLayout, path: Path
) -> StateDict:
    """Give torchvision's tensors timm's names; both list the same layers in the same order.

    Args:
        model: the timm model that the tensors are for.
        state: torchvision's state dict.
        layout: the layout of `state`, as `recognise_torchvision` found it.
        path: the weights file, for messages.

    Raises:
        ModelError: the model has another padding or another number of layers.
    """
    if any(isinstance(module, Conv2dSame) for module in model.modules()):
        raise ModelError(
            f"{path} holds torchvision weights, which need symmetric padding; the model pads as "
            "TensorFlow does",
            hint="choose the model without tf_ in its name, or without pad_type: same",
        )
    own: StateDict = model.state_dict()
    source = sorted({_module_of(key) for key in state} - {layout.head}, key=_torchvision_order)
    target = [name for name in dict.fromkeys(map(_module_of, own)) if name != "classifier"]
    if len(source) != len(target):
        raise ModelError(
            f"{path} holds {layout.name} weights of {len(source)} layers; the model has "
            f"{len(target)}",
            hint="choose the same architecture, such as mobilenetv2_100, mobilenetv3_large_100 "
            "or mobilenetv3_small_100",
        )
    names = {**dict(zip(source, target, strict=True)), layout.head: "classifier"}
    renamed = {}
    for key, tensor in state.items():
        new = f"{names[_module_of(key)]}.{key.rpartition('.')[2]}"
        is_conv_of_linear = new in own and own[new].ndim == 4 and tensor.ndim == 2
        renamed[new] = tensor[:, :, None, None] if is_conv_of_linear else tensor
    return renamed


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _torchvision_order(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    # safetensors files are sorted by name, where 10 comes before 2: compare numbers as numbers.
    parts = [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")
    ]
    return name.startswith("classifier"), parts
