"""Which split an image goes to where its folder does not say: a cut of each class by content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from mnft.data.folder import ImageFile
from mnft.data.labels import LabelRules
from mnft.data.stratify import carve_units
from mnft.errors import DataError


def choose_fractions(
    splits: Sequence[str], *, val_fraction: float, test_fraction: float
) -> dict[str, float]:
    """The splits that a folder with `splits` lacks and that are taken from train: fractions."""
    if "val" in splits:
        return {}
    fractions = {"val": val_fraction}
    if not splits and test_fraction > 0:
        fractions["test"] = test_fraction
    return fractions


def compute_split_counts(
    num_images: int, fractions: Mapping[str, float], *, has: Container[str] = ()
) -> dict[str, int] | None:
    """How many of a class's different images each split takes; None if one would get none.

    Args:
        num_images: number of different images of the class.
        fractions: fractions of the splits that are taken from train.
        has: splits that hold images of the class already.
    """
    counts = {
        name: max(int(name not in has), round(fraction * num_images))
        for name, fraction in fractions.items()
    }
    return counts if sum(counts.values()) + ("train" not in has) <= num_images else None


def choose_known(splits: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """The splits that contents keep in a folder with `splits` of its own, which come first."""
    kept = {"train", "val"} if splits else {"train", "val", "test"}
    return {content: split if split in kept else "train" for content, split in known.items()}


def carve(
    images: Sequence[ImageFile],
    hashes: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, str],
    rules: LabelRules,
) -> dict[str, str]:
    """Choose the splits of contents: a stratified cut.

    Where each image has one label and there are no groups, the contents of each label are put in
    the order of SHA-256(seed, content) and cut; else see `mnft.data.stratify.carve_units`.

    Args:
        images: the images of the data set; those in its own val and test splits are skipped.
        hashes: content of each image, by path.
        fractions: fractions of the splits that are taken from train.
        seed: seed of the cut.
        known: the split of contents that is decided already.
        rules: what the labels are.

    Returns:
        The split of each content; other contents stay in train.

    Raises:
        DataError: a label has too few images, or there are too few groups.
    """
    learned = [image for image in images if image.split in (None, "train")]
    if not fractions:
        return {}
    if not rules.exclusive or any(image.group is not None for image in learned):
        return carve_units(learned, hashes, fractions, seed, known, rules)
    by_class: dict[str, set[str]] = defaultdict(set)
    kept: dict[str, set[str]] = defaultdict(set)  # the splits that a class has already
    chosen: dict[str, str] = {}
    seen: set[str] = set()
    for image in learned:
        content = hashes[image.path]
        # A content that stands in two classes is counted, and split, with the first of them.
        if content in seen:
            continue
        seen.add(content)
        if content in known:
            chosen[content] = known[content]
            kept[image.label].add(known[content])
        else:
            by_class[image.label].add(content)
    for label, contents in sorted(by_class.items()):
        order = sorted(contents, key=lambda c: hashlib.sha256(f"{seed}:{c}".encode()).digest())
        counts = compute_split_counts(len(order), fractions, has=kept[label])
        if counts is None:
            raise DataError(
                f"{rules.noun} {label} has {len(order)} different images, too few to split into "
                f"{', '.join(['train', *fractions])}",
                hint="add images, lower data.val_fraction or data.test_fraction, or make the "
                "split folders yourself",
            )
        for name, count in counts.items():
            chosen |= dict.fromkeys(order[:count], name)
            order = order[count:]
    return chosen
