"""Check a folder for what would spoil a training: files, classes, copies and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.config.data import DataConfig
from mnft.data import readers
from mnft.data.check.copies import get_thumbnail, list_copies, list_near_copies
from mnft.data.check.findings import CheckInput, Finding, TrainingNeeds
from mnft.data.check.groups import check_groups
from mnft.data.check.image_stats import compute_mean_and_std, inspect_with_stats
from mnft.data.check.images import check_images
from mnft.data.decode import Inspection
from mnft.data.exclude import exclude
from mnft.data.folder import IMAGE_SUFFIXES, ImageFile
from mnft.data.labels import LabelRules
from mnft.data.manifest import Manifest
from mnft.data.prepare import split_folder
from mnft.data.scan_files import map_files
from mnft.errors import DataError
from mnft.reporter import Progress


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `mnft data check` found.

    Attributes:
        root: the folder of the images.
        splits: the splits that the data set itself has.
        totals: number of images that decode, by split ("all" where there are none).
        counts: number of these with each label, by split.
        ignored: files that are not taken as images.
        excluded: images that `data.exclude` leaves out.
        not_compared: number of images too small or too plain to be compared with others.
        mean: mean of each channel over the images to learn from, in 0..1; None without images.
        std: standard deviation of each channel over the same images.
        findings: what was found, problems first.
    """

    root: Path
    splits: tuple[str, ...]
    totals: Mapping[str, int]
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
        """The report with more findings, sorted again."""
        return replace(self, findings=_sort([*self.findings, *more]))


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and what later steps need besides.

    Attributes:
        report: what was found.
        rules: what the labels are.
        images: the images that are not excluded.
        inspections: what is known of each of them, by path.
        manifest: how a training would split them; None where it would refuse to.
    """

    report: CheckReport
    rules: LabelRules
    images: tuple[ImageFile, ...]
    inspections: Mapping[str, Inspection]
    manifest: Manifest | None


def check_dataset(
    config: DataConfig,
    rules: LabelRules,
    on_progress: Progress,
    needs: TrainingNeeds | None = None,
) -> Checked:
    """Check a data set.

    Args:
        config: the data set, how it will be split, what is left out, and whether unreadable files
            are a problem.
        rules: what the labels are, with the task's own check.
        on_progress: a function that is called with the files done and all files.
        needs: what a training needs of the images; the defaults where there is none.

    Raises:
        DataError: there is no such data set, or it has no labels.
        ConfigError: the list that `data.exclude` names cannot be used.
    """
    exclusion = exclude(rules.apply(readers.read(config)), config.exclude, rules)
    scan, root = exclusion.scan, exclusion.scan.root
    paths = [image.path for image in scan.images]
    checked = map_files(paths, lambda path: inspect_with_stats(root / path), on_progress)
    inspections = {path: file.inspection for path, file in checked.items()}
    splits: dict[str, str | None] = {image.path: image.split for image in scan.images}
    manifest = None
    refusal = None
    try:
        manifest = split_folder(config, rules, scan, inspections)
        splits |= {sample.path: sample.split for sample in manifest.samples}
    except DataError as error:
        refusal = error
    data = CheckInput(scan, checked, config, needs or TrainingNeeds(), splits, rules)
    totals = dict.fromkeys(scan.splits or ("all",), 0)
    counts = {split: Counter[str](dict.fromkeys(scan.names, 0)) for split in totals}
    for image in scan.images:
        split, is_readable = image.split or "all", inspections[image.path].problem is None
        totals[split] += is_readable
        for name in rules.parse(image.label):
            counts[split][name] += is_readable
    findings = [
        *check_images(data),
        *rules.check(data, counts),
        *check_groups(data, rules, manifest),
    ]
    findings += [
        Finding("unusable_row", config.on_bad_image == "fail", row.reason, (row.path,))
        for row in scan.unusable
    ]
    if loose := tuple(p for p in scan.ignored if Path(p).suffix.lower() in IMAGE_SUFFIXES):
        findings.append(Finding("no_class", False, "in no class folder, not used", loose))
    if unknown := tuple(exclusion.unknown):
        what = "in the list of data.exclude, and no image of the folder"
        findings.append(Finding("exclude_unknown", False, what, unknown))
    findings += [*list_copies(data), *list_near_copies(data)]
    # Mostly a finding says it better; but a training must not refuse what has none.
    if refusal and not any(finding.is_problem for finding in findings):
        findings.append(Finding("cannot_split", True, refusal.message, ()))
    learned = [image.path for image in scan.images if image.split in (None, "train")]
    stats = [stats for path in learned if (stats := checked[path].stats)]
    mean, std = compute_mean_and_std(stats)
    report = CheckReport(
        root=root,
        splits=scan.splits,
        totals=totals,
        counts={split: dict(of_split) for split, of_split in counts.items()},
        ignored=scan.ignored,
        excluded=tuple(exclusion.excluded),
        not_compared=sum(get_thumbnail(data, image) is None for image in data.readable),
        mean=mean,
        std=std,
        findings=_sort(findings),
    )
    return Checked(report, rules, scan.images, inspections, manifest)


def _sort(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: not finding.is_problem))
