"""Where and how a model computes: its place, the memory format, the precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mnft.device.machine import Machine, open_machine
from mnft.device.ranks.distributed import Ranks
from mnft.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_model_is_placed_in_the_memory_format_of_its_images(channels_last: bool) -> None:
    machine = Machine(torch.device("meta"), channels_last=channels_last)
    placed = machine.place(nn.Conv2d(3, 4, 3))
    weight = placed.get_parameter("weight")
    assert weight.device.type == "meta"
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous(memory_format=machine.layout)
    images = torch.zeros(2, 3, 8, 8).contiguous(memory_format=machine.layout)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_the_precisions_of_training_and_evaluation_are_apart() -> None:
    machine = Machine(CPU, Ranks(1, 2), channels_last=False)
    found = machine.with_precision("bf16", "fp32", img_size=224)
    assert (found.train_dtype, found.eval_dtype) == (torch.bfloat16, torch.float32)
    assert (found.device, found.ranks, found.channels_last) == (CPU, Ranks(1, 2), False)
    assert (machine.train_dtype, machine.eval_dtype) == (torch.float32, torch.float32)
    found = machine.with_precision("fp32", "bf16", img_size=None)
    assert (found.train_dtype, found.eval_dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("train", "evaluation", "key"),
    [("fp16", "fp32", "train.precision"), ("fp32", "fp16", "eval.precision")],
)
def test_fp16_on_the_cpu_blames_the_key_that_asks_for_it(
    train: str, evaluation: str, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Machine(CPU).with_precision(train, evaluation, img_size=None)
    assert caught.value.key == key


def test_a_machine_is_opened_in_fp32() -> None:
    assert open_machine("cpu") == Machine(CPU)
    with pytest.raises(ConfigError) as caught:
        open_machine("gpu")
    assert caught.value.key == "train.device"
