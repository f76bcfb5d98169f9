"""Images without labels, beside a data set: found, checked, and kept apart from val and test."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mnft.config.data import DataConfig
from mnft.data.folder import LeftOut, list_images
from mnft.data.manifest import UNLABELLED, Manifest, Sample
from mnft.data.prepare import check_decodes, list_known
from mnft.data.scan_files import scan_files
from mnft.errors import DataError
from mnft.reporter import Progress
from mnft.text import count

_KEY = "distill.images"
_log = logging.getLogger(__name__)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        DataError: blames `distill.images`.
    """
    if not folder.is_dir():
        what = "is a file, expected a folder of images" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}", key=_KEY)


def add_unlabelled(
    manifest: Manifest,
    folder: Path,
    config: DataConfig,
    on_progress: Progress,
    *,
    check_later: bool = False,
) -> Manifest:
    """Add the images of a folder to a manifest, as a split of their own without labels.

    Each content is taken once. Contents that the data set has too are left out: in val and test
    they would make the figures too good, and in train they have a label.

    Args:
        manifest: the labelled images.
        folder: the folder, with or without folders in it.
        config: the `data` section.
        on_progress: a function that is called with the files done and all files.
        check_later: whether the caller decodes the images, and calls again without this if some do
            not decode.

    Raises:
        DataError: no such folder, no image left in it, or files that do not decode and
            `data.on_bad_image` is "fail"; blames `distill.images`.
    """
    check_folder(folder)
    try:
        paths = [_name(file, manifest.root) for file in list_images(folder)]
        known = list_known(config, manifest.root, everything=check_later)
        inspections = scan_files(manifest.root, paths, on_progress, known=known)
        bad = check_decodes(config, manifest.root, inspections)
    except DataError as error:
        error.key = _KEY
        raise
    taken = {sample.sha256: sample.split for sample in manifest.samples}
    samples = []
    left_out = [LeftOut(path, problem) for path, problem in bad.items()]
    for path in paths:
        if path in bad:
            continue
        sha256 = inspections[path].sha256
        if (split := taken.get(sha256)) is None:
            taken[sha256] = UNLABELLED
            samples.append(Sample(path, "", UNLABELLED, sha256))
        else:
            place = "without a label already" if split == UNLABELLED else f"in {split}"
            left_out.append(LeftOut(path, f"the same image is {place}"))
    reasons = Counter(entry.reason for entry in left_out if entry.path not in bad)
    for reason, number in sorted(reasons.items()):
        _log.warning("%s: %s left out: %s", folder, count(number, "image"), reason)
    for path, problem in list(bad.items())[:10]:
        _log.warning("left out: %s: %s", path, problem)
    if not samples:
        found = f"{count(len(paths), 'image')}, all left out" if paths else "no images"
        raise DataError(f"{folder}: found {found}", key=_KEY)
    return replace(
        manifest,
        samples=manifest.samples + tuple(samples),
        left_out=manifest.left_out + tuple(left_out),
    )


def _name(file: Path, root: Path) -> str:
    """The path seen from the data set's root, so that a project that is moved keeps it."""
    try:
        return Path(os.path.relpath(file, root)).as_posix()
    except ValueError:  # on another drive of Windows
        return file.absolute().as_posix()
