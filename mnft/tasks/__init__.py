"""What a model is trained to do: one folder per task, with the same file names in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnft.tasks.base import Task


def open_task(labels: tuple[str, ...], name: str = "classify") -> Task:
    """Build the task of a model whose outputs have these labels.

    Args:
        labels: names of the model's outputs, in order.
        name: name of the task; another task is another folder and another case here.
    """
    match name:
        case "classify":
            from mnft.tasks.classify.task import build

            return build(labels)
    raise ValueError(f"unknown task {name!r}")
