"""Where and how models compute: device, precision, memory format and processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from mnft.device.ranks.distributed import Ranks
from mnft.device.select import resolve_device, resolve_precision

_ALONE = Ranks()


@dataclass(frozen=True, slots=True)
class Machine:
    """What every computation needs to know of the machine.

    Attributes:
        device: device of the model and its batches.
        ranks: processes that share the work.
        train_dtype: precision of the forward pass in training.
        eval_dtype: precision of evaluation.
        channels_last: whether weights and images are in the channels-last memory format.
    """

    device: torch.device
    ranks: Ranks = _ALONE
    train_dtype: torch.dtype = torch.float32
    eval_dtype: torch.dtype = torch.float32
    channels_last: bool = True

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the machine's memory format."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def with_precision(self, train: str, evaluation: str, *, img_size: int | None) -> Machine:
        """Resolve the keys `train.precision` and `eval.precision` on this machine.

        Args:
            train: value of `train.precision`.
            evaluation: value of `eval.precision`.
            img_size: side of the training images in pixels, or None if it is not known.

        Raises:
            ConfigError: fp16 on a CPU, where it is slow and overflows.
        """
        return replace(
            self,
            train_dtype=resolve_precision(
                train, self.device, key="train.precision", img_size=img_size
            ),
            eval_dtype=resolve_precision(evaluation, self.device, key="eval.precision"),
        )


def open_machine(device_name: str = "auto", ranks: Ranks = _ALONE) -> Machine:
    """Find the device that `train.device` or `--device` names; in fp32.

    Raises:
        ConfigError: no such device here.
    """
    return Machine(resolve_device(device_name, ranks), ranks)
