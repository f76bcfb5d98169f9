"""Fetch a data set of the table: from the network or the user's files to a whole image folder."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mnft.data.fetch import archive
from mnft.data.fetch.archive import Progress
from mnft.data.fetch.layouts import ImageFolderWriter
from mnft.data.fetch.table import SPECS, DatasetSpec
from mnft.errors import ConfigError, DataError
from mnft.reporter import Reporter


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
    """The names that `fetch` takes."""
    return list(SPECS)


def describe(name: str) -> DatasetInfo:
    """What the data set `name` is, how large, from where and under which terms.

    Raises:
        ConfigError: no such data set.
    """
    spec = _find(name)
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
    name: str,
    destination: Path,
    *,
    source: Path | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Bring a data set as an image folder: `destination/[split/]class/`.

    Args:
        name: one of `names()`.
        destination: does not exist, or is an empty folder; it appears whole or not at all.
        source: instead of the network: an archive, a folder that holds the archives, or a folder
            where they are unpacked already; nothing in it is changed.
        on_progress: told (what, done, total or 0).

    Returns:
        The destination.

    Raises:
        ConfigError: no such data set, or a `source` for one that needs none.
        DataError: destination in use, no network, wrong checksum, damaged or unsafe archive,
            missing images, or a disk that cannot be written.
    """
    return fetch_dataset(_find(name), destination, source=source, on_progress=on_progress)


def bring(name: str, destination: Path, reporter: Reporter, source: Path | None = None) -> Path:
    """Fetch a data set with a progress bar; arguments and errors are those of `fetch`."""
    info = describe(name)
    reporter.note(f"fetch    {info.title}: {info.num_images:,} images, {info.num_classes} classes")
    with reporter.track(f"fetching {name}") as on_progress:
        return fetch(
            name,
            destination,
            source=source,
            on_progress=lambda _what, done, total: on_progress(done, total),
        )


def fetch_dataset(
    spec: DatasetSpec,
    destination: Path,
    *,
    source: Path | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Do what `fetch` does, for a data set that need not be in the table."""
    if source is not None and not spec.files:
        raise ConfigError(
            f"{spec.name}: comes with an installed package, so there is nothing to give --from",
            hint=f"run: mnft data fetch {spec.name}",
        )
    with archive.disk_errors(f"could not fetch {spec.name}"):
        _check_free(destination)
        with _work_folder(destination) as work:
            base = _obtain(spec, source, work, on_progress)
            writer = ImageFolderWriter(
                work / "images",
                move=base.is_relative_to(work),
                total=spec.num_images,
                on_progress=on_progress,
            )
            spec.layout(base, writer)
            _check_counts(spec, writer)
            _put_in_place(work / "images", destination)
    return destination


def _find(name: str) -> DatasetSpec:
    if name in SPECS:
        return SPECS[name]
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    raise ConfigError(
        f"unknown data set {name!r}" + (f"; did you mean {close[0]}?" if close else ""),
        hint=f"known are {', '.join(names())}",
        key="data.fetch",
    )


def _check_free(destination: Path) -> None:
    if not (destination.exists() or destination.is_symlink()):
        return
    if not destination.is_dir():
        raise DataError(f"{destination}: exists and is not a folder")
    if any(destination.iterdir()):
        raise DataError(
            f"{destination}: not empty, and data sets are never mixed",
            hint="give a folder that does not exist, or remove this one first",
        )


@contextmanager
def _work_folder(destination: Path) -> Iterator[Path]:
    # beside the real destination, so that images are moved within one disk
    real = destination.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=real.parent, prefix=f".{real.name[:80]}.", suffix=".tmp", ignore_cleanup_errors=True
    ) as work:
        yield Path(work)


def _obtain(
    spec: DatasetSpec, source: Path | None, work: Path, on_progress: Progress | None
) -> Path:
    """Give the folder that holds the unpacked files: the user's own, or one inside `work`."""
    if not spec.files:
        return work
    archives = _download_all(spec, on_progress) if source is None else _local_files(spec, source)
    if archives:
        for path, remote in zip(archives, spec.files, strict=True):
            if source is not None:
                archive.verify(path, remote, on_progress=on_progress)
            _unpack(path, work / "unpacked", on_progress)
        return _find_base(spec, work / "unpacked")
    assert source is not None
    base = _find_base(spec, source.resolve())
    for remote in spec.files:
        if (base / remote.file_name).is_file():
            archive.verify(base / remote.file_name, remote, on_progress=on_progress)
    return base


def _download_all(spec: DatasetSpec, on_progress: Progress | None) -> list[Path]:
    folder, hint = archive.downloads_folder() / spec.name, _offline_hint(spec)
    return [
        archive.download(remote, folder, hint=hint, on_progress=on_progress)
        for remote in spec.files
    ]


def _offline_hint(spec: DatasetSpec) -> str:
    urls = ", ".join(file.url for file in spec.files)
    single = len(spec.files) == 1
    return (
        f"download {urls} on another machine"
        f"{'' if single else ' into one folder'}, copy it here and run: mnft data fetch "
        f"{spec.name} --from {spec.files[0].file_name if single else 'FOLDER'}"
    )


def _local_files(spec: DatasetSpec, source: Path) -> list[Path]:
    """The user's archives, in the order of `spec.files`; empty where the folder has not all."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder", hint=_offline_hint(spec))
    if source.is_file() and len(spec.files) == 1:
        return [source]
    folder = source.parent if source.is_file() else source
    paths = [folder / file.file_name for file in spec.files]
    missing = [path.name for path in paths if not path.is_file()]
    if source.is_file() and missing:
        raise DataError(
            f"{spec.name}: {', '.join(missing)} is missing beside {source}",
            hint=_offline_hint(spec),
        )
    return [] if missing else paths


def _unpack(path: Path, folder: Path, on_progress: Progress | None) -> None:
    if path.suffix == ".mat":
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    else:
        archive.extract(path, folder, on_progress=on_progress)


def _find_base(spec: DatasetSpec, folder: Path) -> Path:
    for base in (folder, *(folder / top for top in spec.tops)):
        if all((base / need).exists() for need in spec.needs):
            return base
    archives = ", ".join(file.file_name for file in spec.files)
    raise DataError(
        f"{folder}: holds neither the archives ({archives}) nor what they unpack to "
        f"({', '.join(spec.needs)})",
        hint=_offline_hint(spec),
    )


def _check_counts(spec: DatasetSpec, writer: ImageFolderWriter) -> None:
    found, num_classes = dict(writer.counts), len(writer.class_names)
    if found != dict(spec.split_sizes) or num_classes != spec.num_classes:
        raise DataError(
            f"{spec.name}: expected {_counted(spec.split_sizes)} in {spec.num_classes} classes, "
            f"found {_counted(found)} in {num_classes}",
            hint="the data is not complete or was changed; fetch it from the original archive",
        )


def _counted(sizes: Mapping[str | None, int]) -> str:
    parts = [f"{size:,} {split or ''}".strip() for split, size in sizes.items()]
    return f"{' + '.join(parts) or 0} images"


def _put_in_place(images: Path, destination: Path) -> None:
    # one flush for all: without it a power cut could leave a folder of empty files
    if hasattr(os, "sync"):
        os.sync()
    real = destination.resolve()
    if real.exists():
        real.rmdir()
    images.rename(real)
