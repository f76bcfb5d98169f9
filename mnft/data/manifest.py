"""The split manifest: which file, by content, is in which split; saved with the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnft import files
from mnft.data.decode import Inspection
from mnft.data.folder import FolderScan, ImageFile, LeftOut
from mnft.data.labels import OTHER, LabelRules
from mnft.data.lineage import pack, shorten, unpack
from mnft.data.other import check_apart
from mnft.data.splits import carve, choose_fractions, choose_known
from mnft.errors import CheckpointError, DataError

FORMAT = 1
SPLIT_FILE = "split.json"
UNLABELLED = "unlabelled"  # the split of images from which a student learns without labels


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: its path relative to the root, its label as the reader gave it, its split, its
    content's SHA-256, and its group where the data set has groups.
    """

    path: str
    label: str
    split: str
    sha256: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which files a run uses.

    Attributes:
        root: the image folder.
        labels: sorted names, and OTHER last if there are images of none of them; the index of a
            name is its place in the outputs.
        samples: the images, sorted by path.
        left_out: files that were found and are not used.
        inherited: shortened SHA-256 of images outside the train split that earlier models were
            trained on: those that the run starts from, and its teacher.
    """

    root: Path
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    left_out: tuple[LeftOut, ...] = ()
    inherited: frozenset[str] = frozenset()

    def split(self, name: str) -> list[Sample]:
        """The samples of a split, in the order of their paths."""
        return [sample for sample in self.samples if sample.split == name]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold images."""
        found = {sample.split for sample in self.samples}
        return tuple(name for name in ("train", "val", "test") if name in found)

    @property
    def trained_on(self) -> frozenset[str]:
        """Shortened SHA-256 of all images that the weights of the run have learned from."""
        learned = self.split("train") + self.split(UNLABELLED)
        return self.inherited | {shorten(sample.sha256) for sample in learned}

    @property
    def fingerprint(self) -> str:
        """A hash of contents, classes and splits; the same images split alike give the same."""
        lines = sorted(f"{s.sha256} {s.split} {s.label}" for s in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_manifest(
    scan: FolderScan,
    inspections: Mapping[str, Inspection],
    rules: LabelRules,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    known: Mapping[str, str] | None = None,
) -> Manifest:
    """Choose the split of each image that can be decoded.

    Splits that the folder has are kept. A missing val split is taken from train, and where the
    folder has no splits at all a test split too; see `mnft.data.splits.carve`. The split depends
    only on the seed and the files.
    Copies of one content never stand in two splits: of the folder's own splits, test keeps its
    copy before val, and val before train.

    Args:
        scan: the folder.
        inspections: what is known of each of its files, by path.
        rules: what the labels are.
        val_fraction: fraction of each class for a val split that is taken from train.
        test_fraction: fraction of each class for a test split that is taken from train.
        seed: seed of the cut.
        known: split of each content in another run; these contents stay in their splits, and only
            others are cut.

    Raises:
        DataError: one class, an empty class, a class too small to split, no training images of a
            class, or val or test classes that train has not.
    """
    good = [image for image in scan.images if inspections[image.path].problem is None]
    left_out = [
        LeftOut(image.path, problem)
        for image in scan.images
        if (problem := inspections[image.path].problem) is not None
    ]
    hashes = {image.path: inspections[image.path].sha256 for image in good}
    labels = _check_names(scan, good, rules)
    check_apart(good, hashes)
    holder: dict[str, ImageFile] = {}  # which copy of a content stays
    for name in ("train", "val", "test"):
        holder |= {hashes[image.path]: image for image in good if image.split == name}
    kept = []
    for image in good:
        other = holder.get(hashes[image.path], image)
        if image.split == other.split:
            kept.append(image)
        else:
            left_out.append(LeftOut(image.path, f"the same bytes as {other.path}"))
    fractions = choose_fractions(
        scan.splits, val_fraction=val_fraction, test_fraction=test_fraction
    )
    classes = [image for image in kept if image.label != OTHER]
    others = [image for image in kept if image.label == OTHER]
    carved = carve(classes, hashes, fractions, seed, choose_known(scan.splits, known or {}), rules)
    # Apart from the classes, which are then cut as if there were no others.
    if others:
        has = {*scan.splits, *fractions} - {image.split for image in others}
        missing = {"val": val_fraction, "test": test_fraction}
        missing = {n: f for n, f in missing.items() if n in has and f > 0}
        carved |= carve(others, hashes, missing, seed, choose_known((), known or {}), rules)
    samples = []
    for image in kept:
        sha256, split = hashes[image.path], image.split or "train"
        if split == "train":
            split = carved.get(sha256, split)
        samples.append(Sample(image.path, image.label, split, sha256, image.group))
    if others:
        labels.append(OTHER)
    learned = {n for s in samples if s.split == "train" for n in rules.parse(s.label)}
    if unlearned := [name for name in labels if name not in learned]:
        raise DataError(
            f"{scan.source}: every image of {rules.noun} {', '.join(unlearned)} is a copy of one "
            f"in another split or {rules.noun}, or in a group there, so none is left for train",
            hint="`mnft data check` lists the copies",
        )
    return Manifest(scan.root, tuple(labels), tuple(samples), tuple(left_out))


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write split.json atomically."""
    files.write_json(
        path,
        {
            "format": FORMAT,
            "root": str(manifest.root),
            "absolute_root": str(manifest.root.absolute()),
            "fingerprint": manifest.fingerprint,
            "class_names": list(manifest.labels),
            "names_sha256": _sum_names(manifest.labels),
            "counts": {name: len(manifest.split(name)) for name in manifest.splits},
            "samples": [
                {"path": s.path, "class_name": s.label, "split": s.split, "sha256": s.sha256}
                | ({} if s.group is None else {"group": s.group})
                for s in manifest.samples
            ],
            "left_out": [asdict(entry) for entry in manifest.left_out],
            "inherited": pack(manifest.inherited),
        },
    )


def load_manifest(path: Path) -> Manifest:
    """Read split.json.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {content['format']}, expected {FORMAT}")
        root, absolute_root = (
            Path(content["root"]),
            Path(content.get("absolute_root", content["root"])),
        )
        manifest = Manifest(
            # As written it survives a move of the whole project, else a change of folder.
            absolute_root if absolute_root.exists() and not root.exists() else root,
            tuple(content["class_names"]),
            tuple(Sample(label=s.pop("class_name"), **s) for s in content["samples"]),
            tuple(LeftOut(**entry) for entry in content["left_out"]),
            unpack(content.get("inherited", "")),
        )
        if manifest.fingerprint != content["fingerprint"]:
            raise ValueError("its fingerprint is not that of its samples")
        if content.get("names_sha256", sums := _sum_names(manifest.labels)) != sums:
            raise ValueError("class_names are not those that mnft wrote")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected the run's split") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged split file: {_explain(error)}",
            hint="restore it from a copy of the run; where there is none, move it away: the model "
            "can still predict, and be judged on other images with --data DIR",
        ) from error
    return manifest


def _sum_names(labels: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()


def _explain(error: Exception) -> str:
    """What is wrong with a split file, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON in line {error.lineno}"
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    if isinstance(error, KeyError):
        return f"`{error.args[0]}` is missing"
    if isinstance(error, TypeError | AttributeError):  # Python's words for a list for a mapping
        return "its entries are not those that mnft writes"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def list_changes(manifest: Manifest, samples: Sequence[Sample]) -> list[str]:
    """Files whose content is not what it was when the manifest was made, as "path: what"."""
    changes = []
    for sample in samples:
        file = manifest.root / sample.path
        try:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            changes.append(f"{sample.path}: {error.strerror}")
            continue
        if sha256 != sample.sha256:
            changes.append(f"{sample.path}: its content has changed")
    return changes


def _check_names(scan: FolderScan, good: Sequence[ImageFile], rules: LabelRules) -> list[str]:
    """The names of the labels, when every split can be used."""
    learned = [image for image in good if image.split in (None, "train")]
    train = sorted({name for image in learned for name in rules.parse(image.label)} - {OTHER})
    declared = rules.list_names(scan, "train" if scan.splits else None)
    empty = sorted(
        {n for s, n in scan.empty_classes if s in (None, "train")} | {*declared} - {*train}
    )
    if empty and train:
        raise DataError(
            f"{scan.source}: no usable image in {rules.noun} {', '.join(sorted(empty))}",
            hint="add images of it, or take it away",
        )
    if not train:
        what = "no images in a train split" if scan.splits else "no images"
        place = "with labels" if scan.table else f"in folders, one for each {rules.noun}"
        raise DataError(f"{scan.source}: found {what}, expected images {place}")
    if rules.exclusive and len(train) < 2:
        raise DataError(
            f"{scan.source}: found one {rules.noun} ({train[0]}), expected at least two"
        )
    for split in ("val", "test"):
        if unknown := sorted({*rules.list_names(scan, split)} - {*train}):
            raise DataError(
                f"{scan.source}: the {split} split has {rules.plural} that train has not: "
                f"{', '.join(unknown)}",
                hint=f"{rules.plural} are matched by name: rename or remove them",
            )
    for split in sorted({split for split, _ in scan.empty_classes if split} - set(scan.splits)):
        raise DataError(
            f"{scan.root}: the {split} folder holds no images",
            hint="fill it, or take it away (a val split is then taken from train)",
        )
    return train
