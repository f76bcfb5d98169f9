"""The loss of a training, with a teacher where the config names one; fits the teacher's head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from mnft.config.schema import Config
from mnft.data.batches.batch import Batch, Batches
from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.errors import ModelError
from mnft.model.linear_head import has_linear_head
from mnft.preprocessing import Preprocessing
from mnft.reporter import Reporter
from mnft.tasks.base import Loss
from mnft.training.distill.loss import DistillationLoss, InputAdapter
from mnft.training.distill.teacher import Teacher, load_teacher
from mnft.training.head.fit import Features, compute_features, fit_head, set_head


def build_teaching_loss(
    criterion: Loss,
    config: Config,
    *,
    class_names: tuple[str, ...],
    student: Preprocessing,
    views: tuple[Batches, Batches],
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks,
    reporter: Reporter,
) -> tuple[Loss, str | None]:
    """The criterion, or its combination with a teacher.

    A teacher that does not know the classes gets a head first, fitted to its features of the
    training images; the val split chooses its weight decay, as for the student's.

    Args:
        criterion: of the labels.
        config: of the run.
        class_names: of the student.
        student: preprocessing of the images in batches.
        views: every training and validation image once.
        device: where the training runs.
        dtype: arithmetic of the teacher.
        ranks: the processes that share the images.
        reporter: told how far the features are.

    Returns:
        The loss, and the teacher in words; None without one.

    Raises:
        ModelError: no such teacher, or one whose head cannot be fitted.
    """
    if config.distill.teacher is None:
        return criterion, None
    teacher = load_teacher(
        config.distill,
        class_names=class_names,
        device=device,
        channels_last=config.train.channels_last,
    )
    words = teacher.description
    if teacher.needs_head:
        adapt = InputAdapter(
            student, teacher.preprocessing, resize=teacher.fixed_input, device=device
        )
        features = []
        for split, batches in zip(("train", "val"), views, strict=True):
            with reporter.track(f"teacher's features of {split}") as on_progress:
                adapted = _adapt(batches, adapt, on_progress)
                features.append(_compute(teacher, adapted, device, dtype, ranks))
        # Once, not in each process: see stages.
        fitted = broadcast(
            ranks,
            lambda: fit_head(
                *features,
                num_classes=len(class_names),
                class_weights=None,
                seed=config.train.seed,
                device=device,
            ),
        )
        set_head(teacher.model, fitted)
        teacher = replace(teacher, needs_head=False)
        words += f", its head fitted to the training images: val accuracy {fitted.val.accuracy:.2%}"
    loss = DistillationLoss(criterion, teacher, config.distill, student=student, dtype=dtype)
    return loss, words


def _adapt(
    batches: Batches, adapt: InputAdapter, on_progress: Callable[[int, int], None]
) -> Iterator[Batch]:
    for number, batch in enumerate(batches, start=1):
        yield batch._replace(images=adapt(batch.images))
        on_progress(number, len(batches))


def _compute(
    teacher: Teacher,
    batches: Iterator[Batch],
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks,
) -> Features:
    if not has_linear_head(teacher.model, teacher.preprocessing.input_size):
        raise ModelError(
            f"{teacher.description} does not know the classes, and its head is not one linear "
            "layer that could be fitted to them",
            hint="train it first, and name its run",
            key="distill.teacher",
        )
    return compute_features(teacher.model, batches, device=device, dtype=dtype, ranks=ranks)
