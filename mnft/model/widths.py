"""MobileNet widths that the papers define but timm lacks, as models that timm creates by name.

Importing this module registers them with timm; a name that timm has already is left as it is.

- MobileNetV1 0.25, 0.5 and 0.75: Howard et al., "MobileNets", 2017, section 3.3 and Table 6.
  The width multiplier thins every layer, including the first and the last.
- MobileNetV2 1.3: Sandler et al., "MobileNetV2", 2018; its authors published 0.35, 0.5, 0.75,
  1.0, 1.3 and 1.4, and timm has the others. The last convolution grows with the width but never
  falls below 1280 channels (section 4, "Trade-off hyper parameters").
- MobileNetV3-Large 0.35 and 0.5, MobileNetV3-Small 0.35: Howard et al., "Searching for
  MobileNetV3", 2019, Figure 7. Below 0.75 timm keeps the stem at 16 channels. The figure's 1.25
  is left out: the paper does not give the widths of its stem and last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import efficientnet, generate_default_cfgs, is_model, mobilenetv3
from timm.models import register_model as timm_register_model
from torch import nn

__all__ = [
    "mobilenetv1_025",
    "mobilenetv1_050",
    "mobilenetv1_075",
    "mobilenetv2_130",
    "mobilenetv3_large_035",
    "mobilenetv3_large_050",
    "mobilenetv3_small_035",
]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
        **kwargs,
    }


_V1 = _cfg(mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD)

default_cfgs = generate_default_cfgs(
    {
        "mobilenetv1_025.untrained": _V1,
        "mobilenetv1_050.untrained": _V1,
        "mobilenetv1_075.untrained": _V1,
        "mobilenetv2_130.untrained": _cfg(),
        "mobilenetv3_large_035.untrained": _cfg(interpolation="bilinear"),
        "mobilenetv3_large_050.untrained": _cfg(interpolation="bilinear"),
        "mobilenetv3_small_035.untrained": _cfg(interpolation="bilinear"),
    }
)

# timm's generators are private, but only they build its blocks at another width. They are looked
# up when a model is built, so that a timm without them breaks only these models.
_Generator = Callable[..., nn.Module]


def mobilenetv1_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 0.25: 0.5 M parameters, 41 M multiply-accumulates at 224 pixels."""
    return _mobilenetv1("mobilenetv1_025", 0.25, pretrained=pretrained, **kwargs)


def mobilenetv1_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 0.5: 1.3 M parameters, 149 M multiply-accumulates at 224 pixels."""
    return _mobilenetv1("mobilenetv1_050", 0.5, pretrained=pretrained, **kwargs)


def mobilenetv1_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 0.75: 2.6 M parameters, 325 M multiply-accumulates at 224 pixels."""
    return _mobilenetv1("mobilenetv1_075", 0.75, pretrained=pretrained, **kwargs)


def mobilenetv2_130(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 1.3: 5.4 M parameters, 509 M multiply-accumulates at 224 pixels."""
    generate: _Generator = efficientnet._gen_mobilenet_v2
    return generate("mobilenetv2_130", 1.3, pretrained=pretrained, **kwargs)


def mobilenetv3_large_035(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Large 0.35: 2.1 M parameters, 44 M multiply-accumulates at 224 pixels."""
    return _mobilenetv3("mobilenetv3_large_035", 0.35, pretrained=pretrained, **kwargs)


def mobilenetv3_large_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Large 0.5: 2.7 M parameters, 74 M multiply-accumulates at 224 pixels."""
    return _mobilenetv3("mobilenetv3_large_050", 0.5, pretrained=pretrained, **kwargs)


def mobilenetv3_small_035(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 0.35: 1.4 M parameters, 16 M multiply-accumulates at 224 pixels."""
    return _mobilenetv3("mobilenetv3_small_035", 0.35, pretrained=pretrained, **kwargs)


def _mobilenetv1(variant: str, multiplier: float, **kwargs: Any) -> nn.Module:
    generate: _Generator = efficientnet._gen_mobilenet_v1
    return generate(variant, multiplier, **kwargs)


def _mobilenetv3(variant: str, multiplier: float, **kwargs: Any) -> nn.Module:
    generate: _Generator = mobilenetv3._gen_mobilenet_v3
    return generate(variant, multiplier, **kwargs)


for _name in list(__all__):
    if not is_model(_name):  # one that timm has already stays
        timm_register_model(globals()[_name])
