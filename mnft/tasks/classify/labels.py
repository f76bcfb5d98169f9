"""What classes are to the data layer, and their checks: which each split has, how many images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from mnft.data.check.findings import CheckInput, Finding
from mnft.data.folder import FolderScan
from mnft.data.labels import OTHER, LabelRules
from mnft.data.splits import choose_fractions, compute_split_counts

# With fewer images a class can hardly be learned, and its figures mean little.
_FEW = 20
# The largest class is reported from this many times the images of the smallest.
_IMBALANCE = 5


def check_labels(data: CheckInput, counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    """Find classes that are missing, empty, too small or of very different size.

    Args:
        data: the folder, and what was found in its files.
        counts: number of images that decode, by split ("all" where there are none) and class.
    """
    scan = data.scan

    def folder(name: str) -> str:
        if scan.table:
            return name
        return f"train/{name}" if scan.splits else name

    findings = _check_class_sets(scan)
    # Names that were probably meant as one class, such as Rose and rose.
    alike = defaultdict(list)
    for name in RULES.list_names(scan):
        alike["".join(c for c in name.casefold() if c.isalnum()) or name].append(name)
    for names in alike.values():
        if len(names) > 1:
            what = f"classes {' and '.join(names)} differ only in case, spaces or signs"
            folders = tuple(folder(name) for name in names)
            findings.append(Finding("similar_classes", False, what, folders))
    empty = [f"{split}/{name}" if split else name for split, name in scan.empty_classes]
    empty += [f"{s}/{n}" if scan.splits else n for s, c in counts.items() for n in c if not c[n]]
    findings += [Finding("empty_class", True, "no usable image", (path,)) for path in empty]

    # The images to learn from, before val and test are split from them, and their unique contents.
    learned = [image for image in data.readable if image.split in (None, "train")]
    contents = defaultdict(set)
    for image in learned:
        contents[image.label].add(data.inspection(image).sha256)
    config = data.config
    fractions = choose_fractions(
        scan.splits, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    if fractions:
        parts = ", ".join(["train", *fractions])
        for name, different in sorted(contents.items()):
            if compute_split_counts(len(different), fractions) is None:
                what = f"{len(different)} different images, too few to split into {parts}"
                findings.append(Finding("small_class", True, what, (folder(name),)))
    sizes = Counter(image.label for image in learned)
    if few := {name: size for name, size in sorted(sizes.items()) if size < _FEW}:
        some = ", ".join(f"{name} {size}" for name, size in list(few.items())[:10])
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        what = f"fewer than {_FEW} images to learn from: {some}{more}"
        findings.append(Finding("few_images", False, what, tuple(map(folder, few))))
    sizes.pop(OTHER, None)  # how many of these there are is no balance of classes
    if len(sizes) > 1 and not data.needs.is_balanced:
        (most, largest), (least, smallest) = sizes.most_common()[0], sizes.most_common()[-1]
        if largest >= _IMBALANCE * smallest:
            what = (
                f"{most} has {largest:,} images, {least} {smallest:,}: {largest / smallest:.1f} "
                f"times as many (named from {_IMBALANCE}); train.sampler: balanced or "
                "train.class_weights: balanced evens it out"
            )
            findings.append(Finding("imbalance", False, what, (folder(most), folder(least))))
    return findings


def _check_class_sets(scan: FolderScan) -> list[Finding]:
    """Find classes that one split has and another lacks."""
    learned = RULES.list_names(scan, "train" if scan.splits else None)
    if len(learned) == 1:
        what = f"one class ({learned[0]}), a classifier needs at least two"
        return [Finding("class_set", True, what, ())]
    if "train" not in scan.splits:
        missing = [Finding("class_set", True, "there is no train split", ())]
        return missing if scan.splits else []
    train = set(learned)
    findings = []
    for split in scan.splits[1:]:
        names = set(RULES.list_names(scan, split))
        if unknown := sorted(names - train):
            what = f"{split} has classes that train has not: {', '.join(unknown)}"
            findings.append(Finding("class_set", True, what, ()))
        if absent := sorted(train - names):
            what = f"{split} has no images of: {', '.join(absent)}"
            findings.append(Finding("class_set", False, what, ()))
    return findings


def _parse(label: str) -> tuple[str, ...]:
    return (label,)


RULES = LabelRules(
    task="classify",
    noun="class",
    plural="classes",
    exclusive=True,
    parse=_parse,
    check=check_labels,
)
