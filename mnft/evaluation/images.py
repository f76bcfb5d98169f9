"""Which images a command judges a model on: a split of its run, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft import console
from mnft.data.lineage import shorten
from mnft.data.manifest import Manifest, Sample, find_changes
from mnft.data.prepare import select_images
from mnft.errors import CheckpointError, DataError
from mnft.evaluation.checkpoint import Opened
from mnft.evaluation.parity import spread_evenly
from mnft.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Selection:
    """Images with their classes.

    Attributes:
        root: their folder.
        split: its name, or "all".
        samples: the images.
        problems: files that cannot be decoded, with the reason.
    """

    root: Path
    split: str
    samples: list[Sample]
    problems: dict[str, str]

    def take(self, positions: Sequence[int]) -> Selection:
        """Some of the images."""
        return replace(self, samples=[self.samples[i] for i in positions])

    def take_evenly(self, limit: int | None) -> Selection:
        """At most `limit` of the images, evenly over their order, which is that of the classes."""
        if limit is None:
            return self
        return self.take(spread_evenly(len(self.samples), limit))


def choose_split(recorded: Manifest) -> str:
    """The split that a model is judged on where the user names none."""
    return "test" if "test" in recorded.splits else "val"


def find_images(
    opened: Opened,
    data: Path | None,
    split: str | None,
    *,
    limit: int | None = None,
    judging: bool = True,
) -> Selection:
    """The images to judge a model on.

    Args:
        opened: the model.
        data: a folder; None takes the run's.
        split: None takes test, or else val.
        limit: where given, at most so many, evenly over the classes.
        judging: warn of images that the model was trained on.

    Raises:
        MnftError: no images, classes that the model does not know, images that have changed since
            the training, or a model that lies in no run while no folder is named.
    """
    bundle, recorded = opened.bundle, opened.manifest
    if data is not None:
        with console.progress("checking images") as on_progress:
            samples, problems = select_images(
                data, split, bundle.class_names, recorded, on_progress
            )
        found = Selection(data, samples[0].split, samples, problems).take_evenly(limit)
        for path, problem in problems.items():
            console.warn(f"left out: {path}: {problem}")
    elif recorded is None:
        raise CheckpointError(
            f"{bundle.folder} does not lie in a run, so its images are not known",
            hint="name a folder of images: --data DIR",
        )
    else:
        found = _find_recorded(opened.run, recorded, split or choose_split(recorded), limit)
    if judging and (warning := describe_seen(opened, found)):
        console.warn(warning)
    return found


def count_seen(opened: Opened, images: Selection) -> int:
    """How many of the images the model, or one before it, was trained on."""
    trained_on = opened.trained_on
    return sum(shorten(sample.sha256) in trained_on for sample in images.samples)


def describe_seen(opened: Opened, images: Selection) -> str | None:
    """What a person must know where the model was trained on some of the images; else None."""
    if not (seen := count_seen(opened, images)):
        return None
    own, parts = 0, []
    if opened.manifest is not None:
        learned = {sample.sha256 for sample in opened.manifest.split("train")}
        if own := sum(sample.sha256 in learned for sample in images.samples):
            parts.append(
                f"{own} of the {len(images.samples)} images are in the model's training split"
            )
    if others := seen - own:
        by = "models that it was made from" if opened.manifest else "it or what it was made from"
        parts.append(f"{others} of the {len(images.samples)} images were trained on by {by}")
    return f"{' and '.join(parts)}, so its figures are too good"


def _find_recorded(run: RunFolder, recorded: Manifest, split: str, limit: int | None) -> Selection:
    found = Selection(recorded.root, split, recorded.split(split), {}).take_evenly(limit)
    if not (samples := found.samples):
        raise DataError(
            f"{run.split}: no {split} split, it has {', '.join(recorded.splits)}",
            hint="choose one with --split, or other images with --data DIR",
        )
    if changes := find_changes(recorded, samples):
        raise DataError(
            f"{recorded.root}: {len(changes)} of the {len(samples)} {split} images are not what "
            "they were when the run began:\n  " + "\n  ".join(changes[:10]),
            hint="if the folder moved, name it: --data DIR --split " + split,
        )
    return found
