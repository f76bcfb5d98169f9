"""LeNet-5, the first convolutional network in wide use, as a model that timm creates by name.

Importing this module registers `lenet5` with timm, unless timm has a model of that name.

Reference: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to
Document Recognition", Proceedings of the IEEE 86(11), 1998, section II-B.

As in the paper: the sizes of all layers, 5x5 convolutions without padding, average pooling by
two, tanh. Taken otherwise, as is usual today:

- the pooling layers have no trainable coefficient and bias and no squashing function after them;
- C3 sees all six maps of S2, not the subsets of the paper's Table I;
- tanh(a), not 1.7159 tanh(2a/3), with PyTorch's initialisation;
- the output layer is linear, for cross-entropy, not Euclidean radial basis functions;
- inputs have three channels unless `in_chans` says otherwise (the paper: one), in [-1, 1];
- with `img_size` other than 32, C5 is a full connection to the whole of S4.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, is_model
from timm.models import register_model as timm_register_model
from torch import nn

from mnft.errors import ModelError

__all__ = ["LeNet5", "lenet5"]

MIN_IMG_SIZE = 16


class LeNet5(nn.Module):
    """LeNet-5 with timm's interface (LeCun et al., 1998, section II-B, figure 2).

    The input size is fixed when the model is built, as `fc1` depends on it.

    Args:
        num_classes: classes; 0 leaves the classifier out.
        in_chans: channels of the input.
        img_size: height and width of the input, at least 16; one number for a square.
        drop_rate: dropout in front of the classifier (not in the paper).

    Raises:
        ModelError: `img_size` leaves nothing after the two pooling layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < MIN_IMG_SIZE:
            raise ModelError(
                f"lenet5 cannot take images of {height}x{width} pixels",
                hint=f"use an img_size of {MIN_IMG_SIZE} or more; the paper's is 32",
                key="data.img_size",
            )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = 16
        self.head_hidden_size = 84
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": 6, "reduction": 2, "module": "pool1"},
            {"num_chs": 16, "reduction": 4, "module": "pool2"},
        ]
        self.conv1 = nn.Conv2d(in_chans, 6, kernel_size=5)
        self.act1 = nn.Tanh()
        self.pool1 = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.act2 = nn.Tanh()
        self.pool2 = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(16 * _pooled(height) * _pooled(width), 120)
        self.act3 = nn.Tanh()
        self.fc2 = nn.Linear(120, self.head_hidden_size)
        self.act4 = nn.Tanh()
        self.head_drop = nn.Dropout(drop_rate)
        self.classifier: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Tell timm which parameters make a layer; coarse and fine grouping are the same here."""
        return {
            "stem": r"^conv1",
            "blocks": [(r"^conv2", (0,)), (r"^fc1", (1,)), (r"^fc2", (2,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the convolutions in the backward pass rather than keep their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Give the last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002
        """Replace the last layer with a fresh one of `num_classes`; LeNet-5 has no global pool."""
        self.num_classes = num_classes
        like = self.fc2.weight
        self.classifier = (
            nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the maps of S4: (B, 16, 5, 5) where H and W are 32."""
        layers = [self.conv1, self.act1, self.pool1, self.conv2, self.act2, self.pool2]
        if self.grad_checkpointing and self.training:
            maps: torch.Tensor = checkpoint_seq(layers, x)
            return maps
        for layer in layers:
            x = layer(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Maps of S4 to logits (B, num_classes), or to the 84 values of F6 with `pre_logits`."""
        x = self.act3(self.fc1(x.flatten(1)))
        x = self.act4(self.fc2(x))
        x = self.head_drop(x)
        if pre_logits:
            return x
        logits: torch.Tensor = self.classifier(x)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) float, normalised, to logits (B, num_classes), unnormalised."""
        return self.forward_head(self.forward_features(x))


def _pooled(size: int) -> int:
    """The side of S4's maps: two times a 5x5 convolution without padding, then pooling by two."""
    return ((size - 4) // 2 - 4) // 2


default_cfgs = generate_default_cfgs(
    {
        "lenet5.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv1",
            "classifier": "classifier",
        }
    }
)


def lenet5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """LeNet-5; `timm.create_model("lenet5", num_classes=10, in_chans=1, img_size=28)` and so on."""
    model: nn.Module = build_model_with_cfg(
        LeNet5, "lenet5", pretrained, feature_cfg={"out_indices": (0, 1)}, **kwargs
    )
    return model


if not is_model("lenet5"):  # timm's own, or that of an earlier import, stays
    timm_register_model(lenet5)
