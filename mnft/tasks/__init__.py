"""What a model is trained to do: one folder per task, with the same file names in each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mnft.errors import ModelError

if TYPE_CHECKING:
    from mnft.config.schema import Config
    from mnft.data.labels import LabelRules
    from mnft.tasks.activation import Activation
    from mnft.tasks.base import Task

# The folders beside this file, which are the values of the config's `task`.
TASKS = tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/task.py")))


def open_task(
    labels: tuple[str, ...],
    name: str = "classify",
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
) -> Task:
    """Build the task of a model whose outputs have these labels.

    Args:
        labels: names of the model's outputs, in order.
        name: name of the task.
        settings: what the task keeps with a model, such as thresholds; JSON values.
        config: the config of a training; None where a trained model is used.

    Raises:
        ModelError: there is no such task, or it cannot read these settings.
    """
    task: Task = _load(name, "task").build(labels, settings or {}, config)
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


def load_label_rules(name: str = "classify") -> LabelRules:
    """Load what the labels of a task's data sets are.

    Args:
        name: name of the task.

    Raises:
        ModelError: there is no such task.
    """
    rules: LabelRules = _load(name, "labels").RULES
    return rules


def _load(name: str, part: str) -> ModuleType:
    """Import one file of a task, so that a file that needs little stays light."""
    if name not in TASKS:
        raise ModelError(
            f"found a model of the task {name!r}, which this mnft does not know",
            hint="a newer mnft may: pip install --upgrade mnft",
        )
    return import_module(f"mnft.tasks.{name}.{part}")
