"""The loss of a training, with teachers if the config names any; fits a teacher's new head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from mnft.config.schema import Config
from mnft.data.batches.batch import Batch, Batches
from mnft.device.machine import Machine
from mnft.device.ranks.distributed import broadcast
from mnft.errors import ModelError
from mnft.model.input_adapter import InputAdapter
from mnft.model.linear_head import find_linear_head, has_linear_head
from mnft.preprocessing import Preprocessing
from mnft.reporter import Progress, Reporter
from mnft.tasks.base import Loss, Task, Teacher
from mnft.training.head.features import compute_features, set_head


def add_teachers(
    criterion: Loss,
    config: Config,
    task: Task,
    *,
    student: Preprocessing,
    views: tuple[Batches, Batches],
    machine: Machine,
    reporter: Reporter,
) -> tuple[Loss, list[tuple[str, str]]]:
    """Combine the loss with one against teachers, if the config names any.

    Args:
        criterion: loss against the labels.
        config: config of the run.
        task: what the student learns.
        student: preprocessing of the images in batches.
        views: batches with every training image once, and with every validation image once.
        machine: where the training runs.
        reporter: told of progress in computing features.

    Returns:
        The loss, and of each teacher SHA-256 of its weights and a description.

    Raises:
        ModelError: there is no such teacher, or its head cannot be fitted.
    """
    teachers, described = [], []
    for name in config.distill.teachers:
        teacher = task.load_teacher(name, machine)
        content = _hash_weights(teacher)
        if teacher.needs_head:
            teacher = _fit_head(teacher, task, config.train.seed, student, views, machine, reporter)
        teachers.append(teacher)
        described.append((content, teacher.description))
    if teachers:
        criterion = task.build_distillation(
            criterion, teachers, config.distill, student, machine.train_dtype
        )
    return criterion, described


def _hash_weights(teacher: Teacher) -> str:
    """SHA-256 of the weights that a teacher came with, so without a head that is still to fit."""
    head = find_linear_head(teacher.model) if teacher.needs_head else None
    new = {id(parameter) for parameter in head.parameters()} if head else set()
    digest = hashlib.sha256()
    for name, tensor in [*teacher.model.named_parameters(), *teacher.model.named_buffers()]:
        if id(tensor) not in new:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fit_head(
    teacher: Teacher,
    task: Task,
    seed: int,
    student: Preprocessing,
    views: tuple[Batches, Batches],
    machine: Machine,
    reporter: Reporter,
) -> Teacher:
    """Fit a new head to the teacher's features of the training images.

    The val split chooses the regularisation, as for the student's head.
    """
    if not has_linear_head(teacher.model, teacher.preprocessing.input_size):
        raise ModelError(
            f"{teacher.description} does not know the classes, and its head is not one linear "
            "layer that could be fitted to them",
            hint="train it first, and name its run",
            key="distill.teacher",
        )
    adapt = InputAdapter(
        student, teacher.preprocessing, resize=teacher.fixed_input, device=machine.device
    )

    def adapted(batches: Batches, on_progress: Progress) -> Iterator[Batch]:
        for number, batch in enumerate(batches, start=1):
            yield batch._replace(images=adapt(batch.images))
            on_progress(number, len(batches))

    features = []
    for split, batches in zip(("train", "val"), views, strict=True):
        with reporter.track(f"teacher's features of {split}") as on_progress:
            images = adapted(batches, on_progress)
            features.append(
                compute_features(teacher.model, images, machine, dtype=machine.train_dtype)
            )
    # Only the main process fits: see stages.train_head.
    fitted = broadcast(
        machine.ranks,
        lambda: task.fit_head(*features, balanced=False, seed=seed, device=machine.device),
    )
    set_head(teacher.model, fitted)
    name = next(name for name in fitted.val if name != "loss")
    reached = f"its head fitted to the training images: val {name} {fitted.val[name]:.2%}"
    return replace(teacher, needs_head=False, description=f"{teacher.description}, {reached}")
