"""LeNet-5, the first widely used convolutional network, as a model that timm creates by name.

Importing this module registers `lenet5` with timm, unless timm has a model of that name.

Reference: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to
Document Recognition", Proceedings of the IEEE 86(11), 1998, section II-B.

The sizes of all layers, the 5x5 convolutions without padding, the average pooling by two and the
tanh are those of the paper. The following differs, as is usual today:

- the pooling layers have no trainable coefficient and bias and no squashing function after them;
- C3 sees all six maps of S2, not the subsets of the paper's Table I;
- tanh(a), not 1.7159 tanh(2a/3), with PyTorch's initialisation;
- the output layer is linear, for cross-entropy, not Euclidean radial basis functions;
- inputs have three channels unless `in_chans` says otherwise (the paper: one), in [-1, 1];
- if `img_size` is not 32, C5 is fully connected to the whole of S4.
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
        num_classes: number of classes; 0 leaves the classifier out.
        in_chans: number of input channels.
        img_size: height and width of the input, at least 16; one number for a square.
        drop_rate: probability of dropout before the classifier (not in the paper).

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
        """Tell timm which parameters form a layer; coarse and fine groups are the same here."""
        return {
            "stem": r"^conv1",
            "blocks": [(r"^conv2", (0,)), (r"^fc1", (1,)), (r"^fc2", (2,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the convolutions in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002
        """Replace the last layer by a new one; LeNet-5 has no global pooling."""
        self.num_classes = num_classes
        like = self.fc2.weight
        self.classifier = (
            nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the maps of S4 from images (B, C, H, W): (B, 16, 5, 5) if H and W are 32."""
        layers = [self.conv1, self.act1, self.pool1, self.conv2, self.act2, self.pool2]
        if self.grad_checkpointing and self.training:
            maps: torch.Tensor = checkpoint_seq(layers, x)
            return maps
        for layer in layers:
            x = layer(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Compute logits (B, num_classes) from the maps of S4; with `pre_logits` F6's (B, 84)."""
        x = self.act3(self.fc1(x.flatten(1)))
        x = self.act4(self.fc2(x))
        x = self.head_drop(x)
        if pre_logits:
            return x
        outputs: torch.Tensor = self.classifier(x)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, num_classes) from normalised images (B, C, H, W), float."""
        return self.forward_head(self.forward_features(x))


def _pooled(size: int) -> int:
    """The side of S4's maps, after two 5x5 convolutions without padding, each pooled by two."""
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
    """Build LeNet-5, as in `timm.create_model("lenet5", in_chans=1, img_size=28)`."""
    model: nn.Module = build_model_with_cfg(
        LeNet5, "lenet5", pretrained, feature_cfg={"out_indices": (0, 1)}, **kwargs
    )
    return model


if not is_model("lenet5"):  # one that timm has already stays
    timm_register_model(lenet5)
