"""What a model is trained to do: one folder per task, with the same file names in each."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from mnft.errors import ModelError

if TYPE_CHECKING:
    from mnft.data.check.report import LabelCheck
    from mnft.tasks.activation import Activation
    from mnft.tasks.base import Task

# The folders beside this file, and the values of the config's `task`.
TASKS = ("classify",)


def open_task(labels: tuple[str, ...], name: str = "classify") -> Task:
    """Build the task of a model whose outputs have these labels.

    Args:
        labels: names of the model's outputs, in order.
        name: name of the task.

    Raises:
        ModelError: there is no such task.
    """
    task: Task = _load(name, "task").build(labels)
    return task


def load_activation(name: str = "classify") -> Activation:
    """Load what exported files of a task may end in.

    Args:
        name: name of the task.

    Raises:
        ModelError: there is no such task.
    """
    activation: Activation = _load(name, "activation").ACTIVATION
    return activation


def load_label_check(name: str = "classify") -> LabelCheck:
    """Load the check of a data set's labels.

    Args:
        name: name of the task.

    Raises:
        ModelError: there is no such task.
    """
    check_labels: LabelCheck = _load(name, "checks").check_labels
    return check_labels


def _load(name: str, part: str) -> ModuleType:
    """Import one file of a task, so that a file that needs little stays light."""
    if name not in TASKS:
        raise ModelError(
            f"found a model of the task {name!r}, which this mnft does not know",
            hint="a newer mnft may: pip install --upgrade mnft",
        )
    return import_module(f"mnft.tasks.{name}.{part}")
