"""What is wrong with the classes: which there are, and how many images each has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from mnft.data.check.findings import CheckInput, Finding
from mnft.data.folder import FolderScan
from mnft.data.splits import choose_fractions, compute_split_counts

# Images of a class below which a model of it is a guess, and its figures are too.
_FEW = 20
# Times that the largest class may have of the smallest.
_IMBALANCE = 5


def find_class_faults(data: CheckInput, counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    """Classes that are missing, empty, too small or of very different size.

    Args:
        data: the images and what is known of them.
        counts: images that decode, by split ("all" where there are none) and class.
    """
    return [
        *_class_sets(data.scan),
        *_similar_names(data.scan),
        *_empty(data.scan, counts),
        *_small(data),
        *_few(data),
        *_imbalance(data),
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


def _similar_names(scan: FolderScan) -> Iterator[Finding]:
    """Names that a person may have meant for one class; the letters a and A are two."""
    groups = defaultdict(list)
    for name in scan.class_names():
        groups["".join(c for c in name.casefold() if c.isalnum()) or name].append(name)
    for names in groups.values():
        if len(names) > 1:
            what = f"classes {' and '.join(names)} differ in case, spaces or signs alone"
            folders = tuple(_folder(scan, name) for name in names)
            yield Finding("similar_classes", False, what, folders)


def _empty(scan: FolderScan, counts: Mapping[str, Mapping[str, int]]) -> list[Finding]:
    folders = [f"{split}/{name}" if split else name for split, name in scan.empty_classes]
    folders += [f"{s}/{n}" if scan.splits else n for s, c in counts.items() for n in c if not c[n]]
    return [Finding("empty_class", True, "no usable image", (folder,)) for folder in folders]


def _small(data: CheckInput) -> list[Finding]:
    """Classes with too few different images for the splits that will be made of them."""
    scan, config = data.scan, data.config
    fractions = choose_fractions(
        scan.splits, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    if not fractions:
        return []
    parts = ", ".join(["train", *fractions])
    contents = defaultdict(set)
    for image in data.readable:
        if image.split in (None, "train"):
            contents[image.class_name].add(data.inspection(image).sha256)
    return [
        Finding(
            "small_class",
            True,
            f"{len(found)} different images, too few to split into {parts}",
            (_folder(scan, name),),
        )
        for name, found in sorted(contents.items())
        if compute_split_counts(len(found), fractions) is None
    ]


def _few(data: CheckInput) -> Iterator[Finding]:
    few = {name: n for name, n in sorted(_count(data).items()) if n < _FEW}
    if few:
        some = ", ".join(f"{name} {count}" for name, count in list(few.items())[:10])
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        what = f"fewer than {_FEW} images to learn from: {some}{more}"
        yield Finding("few_images", False, what, tuple(_folder(data.scan, n) for n in few))


def _imbalance(data: CheckInput) -> Iterator[Finding]:
    counts = _count(data)
    if len(counts) < 2 or data.needs.is_balanced:
        return
    (most, largest), (least, smallest) = counts.most_common()[0], counts.most_common()[-1]
    if largest >= _IMBALANCE * smallest:
        what = (
            f"{most} has {largest:,} images, {least} {smallest:,}: {largest / smallest:.1f} times "
            f"as many (named from {_IMBALANCE}); train.sampler: balanced or train.class_weights: "
            "balanced evens it out"
        )
        folders = tuple(_folder(data.scan, name) for name in (most, least))
        yield Finding("imbalance", False, what, folders)


def _count(data: CheckInput) -> Counter[str]:
    """Images to learn from, before splits are taken from them, by class."""
    return Counter(i.class_name for i in data.readable if i.split in (None, "train"))


def _folder(scan: FolderScan, name: str) -> str:
    return f"train/{name}" if scan.splits else name
