"""A model to learn the same labels from."""

from __future__ import annotations

from mnft.config.schema import DistillConfig
from mnft.device.machine import Machine
from mnft.errors import ModelError
from mnft.model.bundle import load_bundle
from mnft.model.teacher import blaming_teacher, check_teacher, find_folder
from mnft.tasks.base import Teacher
from mnft.tasks.classify.distill import teacher as classify


def load_teacher(config: DistillConfig, machine: Machine, *, labels: tuple[str, ...]) -> Teacher:
    """Load a run's best model, a model folder or a pretrained model; see `classify`'s.

    Args:
        config: the `distill` section, with a teacher.
        machine: where the teacher goes.
        labels: labels of the student, in the order of its outputs.

    Raises:
        ModelError: no such teacher, one that cannot be loaded, or one that knows these labels as
            classes, of which an image has exactly one; blames `distill.teacher`.
    """
    teacher = classify.load_teacher(config, machine, class_names=labels)
    check_teacher(config)
    assert config.teacher is not None
    folder = find_folder(config.teacher)
    if folder is None or teacher.needs_head:
        return teacher
    with blaming_teacher():
        task = load_bundle(folder).task
    if task != "multilabel":
        raise ModelError(
            f"{folder} is a model of task: {task}, whose outputs are no labels of their own",
            hint="name a model that was trained with task: multilabel, or a pretrained model",
            key="distill.teacher",
        )
    return teacher
