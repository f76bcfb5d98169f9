"""Which images a command judges a model on: a split of its run, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.config.data import DataConfig
from mnft.data import readers
from mnft.data.labels import OTHER, LabelRules
from mnft.data.lineage import shorten
from mnft.data.manifest import Manifest, Sample, list_changes
from mnft.data.other import list_other
from mnft.data.scan_files import scan_files
from mnft.errors import CheckpointError, DataError
from mnft.evaluation.checkpoint import Checkpoint, load_settings
from mnft.reporter import Reporter
from mnft.runs.folder import RunFolder
from mnft.tasks import load_label_rules


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        root: folder of the images.
        split: name of the split, or "all".
        samples: the images.
        problems: files that cannot be decoded, with the reason.
        source: what a person calls them: the folder, or the table with their labels.
    """

    root: Path
    split: str
    samples: list[Sample]
    problems: dict[str, str]
    source: Path

    def take(self, positions: Sequence[int]) -> ImageSet:
        """Some of the images."""
        return replace(self, samples=[self.samples[i] for i in positions])

    def take_evenly(self, limit: int | None) -> ImageSet:
        """At most `limit` images, evenly over their order, which is that of the classes."""
        if limit is None:
            return self
        return self.take(every_nth(len(self.samples), limit))


def choose_split(recorded: Manifest) -> str:
    """The split to judge a model on if the user names none."""
    return "test" if "test" in recorded.splits else "val"


def load_image_set(
    opened: Checkpoint,
    data: Path | None,
    split: str | None,
    reporter: Reporter,
    *,
    limit: int | None = None,
    judging: bool = True,
) -> ImageSet:
    """Load the list of images to judge a model on.

    Args:
        opened: the model.
        data: a folder of images; None takes those of the run.
        split: name of the split; None takes test if there is one, else val.
        reporter: told of progress and of what may be wrong.
        limit: largest number of images, spread evenly over the classes; None takes all.
        judging: whether to warn of images that the model was trained on.

    Raises:
        MnftError: no images, classes that the model does not know, images that have changed since
            the training, or a model that lies in no run while no folder is named.
    """
    bundle, recorded = opened.bundle, opened.manifest
    if data is not None:
        with reporter.track("checking images") as on_progress:
            # The run's config says which columns a table has; groups do not matter here.
            own = load_settings(opened, [])[0].data
            columns = {k: v for k, v in own.columns.items() if k in {"path", "label", "labels"}}
            update = {"root": str(data), "group": None, "columns": columns, "other": None}
            config = own.model_copy(update=update)
            rules = load_label_rules(bundle.task)
            found = list_images(config, rules, split, bundle.labels, recorded, on_progress)
        found = found.take_evenly(limit)
        for path, problem in found.problems.items():
            reporter.warn(f"left out: {path}: {problem}")
    elif recorded is None:
        raise CheckpointError(
            f"{bundle.folder} does not lie in a run, so its images are not known",
            hint="name a folder of images: --data DIR",
        )
    else:
        found = _find_recorded(opened.run, recorded, split or choose_split(recorded), limit)
    if judging and (warning := describe_seen(opened, found)):
        reporter.warn(warning)
    return found


def load_unknown_images(folder: Path, reporter: Reporter) -> ImageSet:
    """List the images below a folder, which are of nothing that the model knows.

    Raises:
        DataError: no such folder, or no image in it that decodes.
    """
    paths = [file.relative_to(folder).as_posix() for file in list_other(folder)]
    with reporter.track("checking images") as on_progress:
        inspections = scan_files(folder, paths, on_progress)
    problems = {path: i.problem for path, i in inspections.items() if i.problem is not None}
    for path, problem in problems.items():
        reporter.warn(f"left out: {folder / path}: {problem}")
    samples = [
        Sample(path, OTHER, "unknown", inspections[path].sha256)
        for path in paths
        if path not in problems
    ]
    if not samples:
        raise DataError(f"{folder}: none of its {len(paths)} images can be read")
    return ImageSet(folder, "unknown", samples, problems, folder)


def count_seen(opened: Checkpoint, images: ImageSet) -> int:
    """How many of the images the model, or one before it, was trained on."""
    trained_on = opened.trained_on
    return sum(shorten(sample.sha256) in trained_on for sample in images.samples)


def describe_seen(opened: Checkpoint, images: ImageSet) -> str | None:
    """A warning if the model, or one before it, was trained on some of the images; else None."""
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


def _find_recorded(run: RunFolder, recorded: Manifest, split: str, limit: int | None) -> ImageSet:
    found = ImageSet(recorded.root, split, recorded.split(split), {}, recorded.root).take_evenly(
        limit
    )
    if not (samples := found.samples):
        raise DataError(
            f"{run.split}: no {split} split, it has {', '.join(recorded.splits)}",
            hint="choose one with --split, or other images with --data DIR",
        )
    if changes := list_changes(recorded, samples):
        raise DataError(
            f"{recorded.root}: {len(changes)} of the {len(samples)} {split} images are not what "
            "they were when the run began:\n  " + "\n  ".join(changes[:10]),
            hint="if the folder moved, name it: --data DIR --split " + split,
        )
    return found


def list_images(
    config: DataConfig,
    rules: LabelRules,
    split: str | None,
    labels: tuple[str, ...],
    recorded: Manifest | None,
    on_progress: Callable[[int, int], None],
) -> ImageSet:
    """List the images of a data set to evaluate a model on; labels are matched by name.

    Args:
        config: the data set: a folder, or a table of labels with its columns.
        rules: what the labels are.
        split: name of the split; None takes test, or else val, of a data set with splits, and all
            images of one without. Images of a split that mnft made itself (val out of train/, or
            all splits of a plain folder) are recognised by content.
        labels: names of the model's outputs.
        recorded: manifest of the model's training, or None if it lies in no run.
        on_progress: called with the files inspected and all files.

    Returns:
        The images, and the files or rows that cannot be used with the reason.

    Raises:
        DataError: there is no such split, neither test nor val if none is named, or no image; or
            the model does not know a label, or a table has no column for one.
    """
    scan = rules.apply(readers.read(config))
    root = scan.source
    if scan.splits and split is None:
        split = next((name for name in ("test", "val") if name in scan.splits), None)
        if split is None:
            raise DataError(
                f"{root}: found neither a test nor a val split, only {', '.join(scan.splits)}",
                hint="to judge on the images of the train split: --split train",
            )
    # Whether the training on this folder split these images off the train folder.
    carved = bool(scan.splits) and (
        split not in scan.splits or (split == "train" and "val" not in scan.splits)
    )
    carved = carved and recorded is not None
    folder = "train" if carved else split
    chosen = [i for i in scan.images if not scan.splits or i.split == folder]
    named = {name for image in chosen for name in rules.parse(image.label)}
    if unknown := sorted({*scan.names, *named} - set(labels)):
        raise DataError(
            f"{root}: {rules.plural} that the model does not know: {', '.join(unknown)}",
            hint=f"the model knows {', '.join(labels[:10])}"
            + (", ..." if len(labels) > 10 else ""),
        )
    if scan.names and (missing := sorted(set(labels) - set(scan.names))):
        raise DataError(
            f"{root}: no column for {', '.join(missing)}, which the model knows",
            hint="add it, with empty cells where it is not known",
        )
    inspections = scan_files(scan.root, [image.path for image in chosen], on_progress)
    problems = {row.path: row.reason for row in scan.unusable}
    problems |= {path: i.problem for path, i in inspections.items() if i.problem is not None}
    samples = [
        Sample(i.path, i.label, split or "all", inspections[i.path].sha256, i.group)
        for i in chosen
        if i.path not in problems
    ]
    if split and (carved or not scan.splits):
        if recorded is None:
            raise DataError(
                f"{root}: no {split} split, and the model folder does not lie in a run that "
                "recorded a split",
                hint="leave --split out to take all images",
            )
        known = {sample.sha256 for sample in recorded.samples}
        # A train folder that shares no image with the run is other data, and taken whole.
        other_data = scan.splits and split == "train"
        if not other_data or not known.isdisjoint(sample.sha256 for sample in samples):
            contents = {sample.sha256 for sample in recorded.split(split)}
            samples = [sample for sample in samples if sample.sha256 in contents]
    if not samples:
        there = f"it has {', '.join(scan.splits)}" if scan.splits else "no image can be used"
        raise DataError(f"{root}: no images in the {split or 'whole'} split: {there}")
    return ImageSet(scan.root, samples[0].split, samples, problems, scan.source)


def every_nth(count: int, wanted: int) -> Sequence[int]:
    """`wanted` positions spread evenly over `count`, which lie in the order of the classes."""
    if wanted >= count:
        return range(count)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def per_class(labels: Sequence[str], count: int) -> list[int]:
    """Positions of `count` images, equally many of each class, spread evenly over its images.

    Args:
        labels: class name of each image.
        count: number of images; all are taken if there are fewer.
    """
    by_class: dict[str, list[int]] = {}
    for position, name in enumerate(labels):
        by_class.setdefault(name, []).append(position)
    chosen = dict.fromkeys(by_class, 0)
    left = min(count, len(labels))
    while left:
        # One image of each class at a time, because a class may have too few for an equal part.
        for name in [n for n, own in by_class.items() if chosen[n] < len(own)][:left]:
            chosen[name] += 1
            left -= 1
    return sorted(
        own[(2 * i + 1) * len(own) // (2 * chosen[name])]
        for name, own in by_class.items()
        for i in range(chosen[name])
    )
