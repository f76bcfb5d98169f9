"""Find what would spoil a training: files, classes and splits; looks at bytes and decodes once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mnft.config.schema import DataConfig
from mnft.data.decode import Inspection
from mnft.data.folder import IMAGE_SUFFIXES, FolderScan, scan_folder
from mnft.data.inspection import inspect_files
from mnft.data.manifest import choose_fractions, compute_split_counts


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that would spoil a training, or that a person should know.

    `kind` is "unreadable", "leak", "label_conflict", "class_set", "empty_class", "small_class",
    "no_class" or "duplicate"; `is_problem` says whether the check fails for it.
    """

    kind: str
    is_problem: bool
    message: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `mnft data check` found.

    Attributes:
        root: the folder.
        splits: that the folder has.
        counts: images that decode, by split ("all" where there are none) and class.
        ignored: files that are not taken as images.
        findings: problems first.
    """

    root: Path
    splits: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    ignored: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def num_problems(self) -> int:
        """Findings that make the check fail."""
        return sum(finding.is_problem for finding in self.findings)


def check_folder(
    root: Path, on_progress: Callable[[int, int], None], config: DataConfig | None = None
) -> CheckReport:
    """Check an image folder.

    Args:
        root: the folder.
        on_progress: called with the files inspected and all files.
        config: how the folder will be split, and whether unreadable files are a problem; the
            defaults where there is none.

    Raises:
        DataError: the folder is none, or holds no class folders.
    """
    config = config or DataConfig(root=str(root))
    scan = scan_folder(root)
    inspections = inspect_files(root, [image.path for image in scan.images], on_progress)
    counts: dict[str, Counter[str]] = {split: Counter() for split in scan.splits or ("all",)}
    for image in scan.images:
        readable = inspections[image.path].problem is None
        counts[image.split or "all"][image.class_name] += readable
    findings = [
        *_unreadable(inspections, is_problem=config.on_bad_image == "fail"),
        *_class_sets(scan),
        *_empty(scan, counts),
        *_small(scan, inspections, config),
        *_without_class(scan),
        *_copies(scan, inspections),
    ]
    findings.sort(key=lambda finding: not finding.is_problem)
    plain = {split: dict(of_split) for split, of_split in counts.items()}
    return CheckReport(root, scan.splits, plain, scan.ignored, tuple(findings))


def _unreadable(inspections: Mapping[str, Inspection], *, is_problem: bool) -> list[Finding]:
    return [
        Finding("unreadable", is_problem, str(inspection.problem), (path,))
        for path, inspection in inspections.items()
        if inspection.problem is not None
    ]


def _class_sets(scan: FolderScan) -> list[Finding]:
    learned = scan.class_names("train" if scan.splits else None)
    if len(learned) == 1:
        what = f"one class ({learned[0]}), a classifier needs at least two"
        return [Finding("class_set", True, what, ())]
    if "train" not in scan.splits:
        missing = [Finding("class_set", True, "there is no train folder", ())]
        return missing if scan.splits else []
    train = set(learned)
    findings = []
    for split in scan.splits[1:]:
        names = set(scan.class_names(split))
        if unknown := sorted(names - train):
            what = f"{split} has classes that train has not: {', '.join(unknown)}"
            findings.append(Finding("class_set", True, what, ()))
        if absent := sorted(train - names):
            what = f"{split} has no images of: {', '.join(absent)}"
            findings.append(Finding("class_set", False, what, ()))
    return findings


def _empty(scan: FolderScan, counts: Mapping[str, Counter[str]]) -> list[Finding]:
    folders = [f"{split}/{name}" if split else name for split, name in scan.empty_classes]
    folders += [f"{s}/{n}" if scan.splits else n for s, c in counts.items() for n in c if not c[n]]
    return [Finding("empty_class", True, "no usable image", (folder,)) for folder in folders]


def _small(
    scan: FolderScan, inspections: Mapping[str, Inspection], config: DataConfig
) -> list[Finding]:
    """Classes with too few different images for the splits that will be made of them."""
    fractions = choose_fractions(
        scan.splits, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    if not fractions:
        return []
    parts = ", ".join(["train", *fractions])
    contents = defaultdict(set)
    for image in scan.images:
        if image.split in (None, "train") and inspections[image.path].problem is None:
            contents[image.class_name].add(inspections[image.path].sha256)
    return [
        Finding(
            "small_class",
            True,
            f"{len(found)} different images, too few to split into {parts}",
            (f"train/{name}" if scan.splits else name,),
        )
        for name, found in sorted(contents.items())
        if compute_split_counts(len(found), fractions) is None
    ]


def _without_class(scan: FolderScan) -> list[Finding]:
    loose = tuple(p for p in scan.ignored if Path(p).suffix.lower() in IMAGE_SUFFIXES)
    return [Finding("no_class", False, "in no class folder, not used", loose)] if loose else []


def _copies(scan: FolderScan, inspections: Mapping[str, Inspection]) -> list[Finding]:
    by_content = defaultdict(list)
    for image in scan.images:
        if inspections[image.path].problem is None:
            by_content[inspections[image.path].sha256].append(image)
    findings = []
    for images in by_content.values():
        if len(images) < 2:
            continue
        paths = tuple(image.path for image in images)
        splits = {image.split for image in images}
        classes = {image.class_name for image in images}
        if len(splits) > 1:
            what = f"the same image in {' and '.join(sorted(map(str, splits)))}"
            findings.append(Finding("leak", True, what, paths))
        if len(classes) > 1:
            what = f"the same image in classes {' and '.join(sorted(classes))}"
            findings.append(Finding("label_conflict", True, what, paths))
        if len(splits) == len(classes) == 1:
            findings.append(Finding("duplicate", False, "the same image more than once", paths))
    return findings
