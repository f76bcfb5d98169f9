"""Find what would spoil a training: files, classes, copies and splits, in one look at each file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.config.schema import DataConfig
from mnft.data.check.copies import count_compared, find_copies, find_near_copies
from mnft.data.check.examine import Examined, compute_statistics, examine_files
from mnft.data.check.findings import Expectations, Finding, Material
from mnft.data.check.images import find_image_faults, find_loose_images
from mnft.data.decode import Inspection
from mnft.data.exclude import Exclusion, exclude
from mnft.data.folder import FolderScan, ImageFile, scan_folder
from mnft.data.manifest import Manifest
from mnft.data.prepare import split_folder
from mnft.errors import DataError


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `mnft data check` found.

    Attributes:
        root: the folder.
        splits: that the folder has.
        counts: images that decode, by split ("all" where there are none) and class.
        ignored: files that are not taken as images.
        excluded: images that `data.exclude` leaves out.
        not_compared: images too small or too plain for being compared with others.
        mean: of each channel, in 0..1, of the images to learn from; None without images.
        std: standard deviation likewise.
        findings: problems first.
    """

    root: Path
    splits: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    ignored: tuple[str, ...]
    excluded: tuple[str, ...]
    not_compared: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    findings: tuple[Finding, ...]

    @property
    def num_problems(self) -> int:
        """Findings that make the check fail."""
        return sum(finding.is_problem for finding in self.findings)

    def with_findings(self, more: list[Finding]) -> CheckReport:
        """The report with further findings in their places."""
        return replace(self, findings=_sort([*self.findings, *more]))


LabelCheck = Callable[[Material, Mapping[str, Mapping[str, int]]], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and what later steps need of the material.

    Attributes:
        report: what was found.
        images: that are not excluded.
        inspections: of the files that are not excluded, by path.
        manifest: how a training would split them; None where it would refuse to.
    """

    report: CheckReport
    images: tuple[ImageFile, ...]
    inspections: Mapping[str, Inspection]
    manifest: Manifest | None


def check_folder(
    root: Path,
    on_progress: Callable[[int, int], None],
    config: DataConfig | None = None,
    expected: Expectations | None = None,
    *,
    check_labels: LabelCheck,
) -> Checked:
    """Check an image folder.

    Args:
        root: the folder.
        on_progress: called with the files inspected and all files.
        config: how the folder will be split, what it leaves out, and whether unreadable files are a
            problem; the defaults where there is none.
        expected: what a training makes of the images.
        check_labels: the task's own check, of the images and the number of readable images of each
            class in each split.

    Raises:
        DataError: the folder is none, or holds no class folders.
        ConfigError: the list that `data.exclude` names cannot be used.
    """
    config = config or DataConfig(root=str(root))
    exclusion = exclude(scan_folder(root), config.exclude)
    scan = exclusion.scan
    examined = examine_files(root, [image.path for image in scan.images], on_progress)
    inspections = {path: found.inspection for path, found in examined.items()}
    manifest = _plan(scan, inspections, config)
    splits = _find_splits(scan, manifest)
    material = Material(scan, examined, config, expected or Expectations(), splits)
    counts = _count(material)
    findings = [
        *find_image_faults(material),
        *check_labels(material, counts),
        *find_loose_images(scan),
        *_unknown(exclusion),
        *find_copies(material),
        *find_near_copies(material),
    ]
    mean, std = _compute_statistics(scan, examined) or (None, None)
    report = CheckReport(
        root=root,
        splits=scan.splits,
        counts={split: dict(of_split) for split, of_split in counts.items()},
        ignored=scan.ignored,
        excluded=tuple(exclusion.excluded),
        not_compared=len(material.readable) - count_compared(material),
        mean=mean,
        std=std,
        findings=_sort(findings),
    )
    return Checked(report, scan.images, inspections, manifest)


def _sort(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: not finding.is_problem))


def _plan(
    scan: FolderScan, inspections: Mapping[str, Inspection], config: DataConfig
) -> Manifest | None:
    """The split that a training would make; None where the findings say why there is none."""
    try:
        return split_folder(config, scan, inspections)
    except DataError:
        return None


def _find_splits(scan: FolderScan, manifest: Manifest | None) -> dict[str, str | None]:
    splits = {image.path: image.split for image in scan.images}
    if manifest is not None:
        splits |= {sample.path: sample.split for sample in manifest.samples}
    return splits


def _count(material: Material) -> dict[str, Counter[str]]:
    scan = material.scan
    counts: dict[str, Counter[str]] = {split: Counter() for split in scan.splits or ("all",)}
    for image in scan.images:
        is_readable = material.inspection(image).problem is None
        counts[image.split or "all"][image.class_name] += is_readable
    return counts


def _compute_statistics(
    scan: FolderScan, examined: Mapping[str, Examined]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    learned = [image.path for image in scan.images if image.split in (None, "train")]
    return compute_statistics([looks for path in learned if (looks := examined[path].looks)])


def _unknown(exclusion: Exclusion) -> list[Finding]:
    if not exclusion.unknown:
        return []
    what = "in the list of data.exclude, and no image of the folder"
    return [Finding("exclude_unknown", False, what, tuple(exclusion.unknown))]
