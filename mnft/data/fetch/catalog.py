"""Fetch a data set of the table: from the network or the user's archives to an image folder."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mnft.data.fetch import archive
from mnft.data.fetch.layouts import ImageFolderWriter
from mnft.data.fetch.table import SPECS, DatasetSpec
from mnft.data.store.cache import choose_cache_folder
from mnft.errors import ConfigError, DataError
from mnft.reporter import SILENT, Reporter


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a person wants to know before fetching; `download_mb` counts millions of bytes."""

    name: str
    title: str
    num_classes: int
    num_images: int
    splits: str
    download_mb: float
    sources: tuple[str, ...]
    terms: str


def names() -> list[str]:
    """The names of the data sets in the table."""
    return list(SPECS)


def describe(name: str) -> DatasetInfo:
    """What the data set `name` is, how large, from where and under which terms.

    Raises:
        ConfigError: no such data set.
    """
    spec = _get_spec(name)
    splits = [f"{split} {size:,}" for split, size in spec.split_sizes.items() if split]
    return DatasetInfo(
        name=spec.name,
        title=spec.title,
        num_classes=spec.num_classes,
        num_images=spec.num_images,
        splits=", ".join(splits) or "none: mnft makes the split",
        download_mb=round(sum(file.num_bytes for file in spec.files) / 1e6, 1),
        sources=tuple(file.url for file in spec.files),
        terms=spec.terms,
    )


def fetch(
    dataset: str | DatasetSpec,
    destination: Path,
    *,
    source: Path | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Bring a data set as an image folder: `destination/[split/]class/`.

    Args:
        dataset: one of `names()`, or a data set that is not in the table.
        destination: a folder that does not exist, or is empty; it appears whole or not at all.
        source: an archive, or a folder that holds the archives, instead of the network.
        reporter: receives what is fetched, and the progress.

    Returns:
        The destination.

    Raises:
        ConfigError: no such data set, or a `source` for one that needs none.
        DataError: destination in use, no network, wrong checksum, damaged or unsafe archive,
            missing images, or a disk that cannot be written.
    """
    spec = _get_spec(dataset) if isinstance(dataset, str) else dataset
    what = f"{spec.num_images:,} images, {spec.num_classes} classes"
    reporter.note(f"fetch    {spec.title}: {what}")
    if source is not None and not spec.files:
        raise ConfigError(
            f"{spec.name}: comes with an installed package, so there is nothing to give --from",
            hint=f"run: mnft data fetch {spec.name}",
        )
    try:
        if (destination.exists() or destination.is_symlink()) and not destination.is_dir():
            raise DataError(f"{destination}: exists and is not a folder")
        if destination.exists() and any(destination.iterdir()):
            raise DataError(
                f"{destination}: not empty, and data sets are never mixed",
                hint="give a folder that does not exist, or remove this one first",
            )
        # The work folder lies beside the real destination, so images are moved within one disk.
        real = destination.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=real.parent, prefix=f".{real.name[:80]}.", suffix=".tmp", ignore_cleanup_errors=True
        ) as work:
            unpacked, images = Path(work, "unpacked"), Path(work, "images")
            _unpack(spec, source, unpacked, reporter)
            with reporter.track("writing images") as on_progress:
                writer = ImageFolderWriter(images, total=spec.num_images, on_progress=on_progress)
                spec.layout(unpacked / spec.top, writer)
            found, num_classes = dict(writer.counts), len(writer.class_names)
            if found != dict(spec.split_sizes) or num_classes != spec.num_classes:
                raise DataError(
                    f"{spec.name}: expected {_describe(spec.split_sizes)} in {spec.num_classes} "
                    f"classes, found {_describe(found)} in {num_classes}",
                    hint="the data is not complete or was changed; fetch it from the original "
                    "archive",
                )
            # One flush for all: without it a power cut could leave a folder of empty files.
            if hasattr(os, "sync"):
                os.sync()
            if real.exists():
                real.rmdir()
            images.rename(real)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise DataError(
            f"could not fetch {spec.name}: {error.strerror or error}{where}",
            hint="free some space, or choose a disk with room that you may write to: --to for the "
            "images, MNFT_CACHE for downloads",
        ) from error
    return destination


def _get_spec(name: str) -> DatasetSpec:
    if name in SPECS:
        return SPECS[name]
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    raise ConfigError(
        f"unknown data set {name!r}" + (f"; did you mean {close[0]}?" if close else ""),
        hint=f"known are {', '.join(names())}",
        key="data.fetch",
    )


def _unpack(spec: DatasetSpec, source: Path | None, folder: Path, reporter: Reporter) -> None:
    """Download the archives, or take the user's, check them, and unpack them into one folder."""
    urls = ", ".join(file.url for file in spec.files)
    is_single = len(spec.files) == 1
    hint = (
        f"download {urls} on another machine"
        f"{'' if is_single else ' into one folder'}, copy it here and run: mnft data fetch "
        f"{spec.name} --from {spec.files[0].file_name if is_single else 'FOLDER'}"
        if spec.files
        else ""
    )
    if source is None:
        cache = choose_cache_folder("auto") / "downloads" / spec.name
        paths = [archive.download(f, cache, hint=hint, reporter=reporter) for f in spec.files]
    else:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder", hint=hint)
        beside = source.parent if source.is_file() else source
        paths = [beside / remote.file_name for remote in spec.files]
        if source.is_file() and is_single:
            paths = [source]
        if missing := [path.name for path in paths if not path.is_file()]:
            where = "beside" if source.is_file() else "in"
            raise DataError(
                f"{spec.name}: {', '.join(missing)} is missing {where} {source}", hint=hint
            )
        for path, remote in zip(paths, spec.files, strict=True):
            archive.verify(path, remote, reporter)
    folder.mkdir()
    for path in paths:
        if path.suffix == ".mat":
            shutil.copyfile(path, folder / path.name)
        else:
            archive.extract(path, folder, reporter=reporter)


def _describe(sizes: Mapping[str | None, int]) -> str:
    parts = [f"{size:,} {split or ''}".strip() for split, size in sizes.items()]
    return f"{' + '.join(parts) or 0} images"
