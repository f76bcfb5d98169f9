"""From the `data` section to a manifest of images that decode: scan, inspect, split."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path

from mnft.config.data import DataConfig
from mnft.data import readers
from mnft.data.decode import Inspection, list_cures
from mnft.data.exclude import exclude
from mnft.data.folder import FolderScan, LeftOut
from mnft.data.labels import LabelRules
from mnft.data.manifest import (
    SPLIT_FILE,
    Manifest,
    Sample,
    build_manifest,
    load_manifest,
)
from mnft.data.scan_files import scan_files
from mnft.data.store.cache import choose_cache_folder
from mnft.data.store.store import list_known_contents
from mnft.errors import CheckpointError, ConfigError, DataError
from mnft.reporter import Progress
from mnft.text import count

_SHOWN = 10
_LISTED_BAD = 100
_log = logging.getLogger(__name__)


class _Everything:
    """Contains whatever is asked for."""

    def __contains__(self, _item: object) -> bool:
        return True


def prepare_manifest(
    config: DataConfig, rules: LabelRules, on_progress: Progress, *, check_later: bool = False
) -> Manifest:
    """Find the images of `data.root`, make sure that they decode, and split them.

    Every file is read and hashed; contents that the store has decoded before are not decoded again.

    Args:
        config: the `data` section.
        rules: what the labels are.
        on_progress: a function that is called with the files done and all files.
        check_later: decode only the images of the test split; the caller, who decodes the others
            for the store, must prepare again without this if some do not decode.

    Raises:
        DataError: the data set cannot be used, is for another task, or holds files that do not
            decode or rows that cannot be used, and `data.on_bad_image` is "fail".
        ConfigError: the list that `data.exclude` names cannot be used.
    """
    try:
        exclusion = exclude(rules.apply(readers.read(config)), config.exclude, rules)
        scan = exclusion.scan
        if scan.unusable and config.on_bad_image == "fail":
            raise _too_many_unusable(scan)
        known = list_known(config, scan.root)
        parts = (config, rules, scan, known, on_progress)
        manifest = _prepare_unchecked(*parts) if check_later else None
        manifest = manifest or _prepare(*parts)
    except DataError as error:
        error.key = error.key or "data.root"
        if error.hint is None and not Path(config.root).expanduser().exists():
            error.hint = (
                "data.root names the folder of images, or a table of their labels, seen from the "
                "current folder"
            )
        raise
    for entry in manifest.left_out[:_SHOWN]:
        _log.warning("left out: %s: %s", entry.path, entry.reason)
    if len(manifest.left_out) > _SHOWN:
        _log.warning("left out: %d more, see split.json", len(manifest.left_out) - _SHOWN)
    _warn_of_conflicts(manifest)
    _warn_of_groups(manifest)
    if exclusion.unknown:
        _log.warning(
            "data.exclude: %d paths of %s are no image of the folder: %s",
            len(exclusion.unknown),
            config.exclude,
            ", ".join(exclusion.unknown[:_SHOWN]),
        )
    excluded = tuple(LeftOut(path, f"excluded by {config.exclude}") for path in exclusion.excluded)
    return replace(manifest, left_out=manifest.left_out + scan.unusable + excluded)


def _too_many_unusable(scan: FolderScan) -> DataError:
    rows = scan.unusable
    return DataError(
        f"{scan.source}: {count(len(rows), 'row')} cannot be used:\n"
        + "\n".join(f"  {row.path}: {row.reason}" for row in rows[:_LISTED_BAD])
        + (f"\n  and {len(rows) - _LISTED_BAD} more" if len(rows) > _LISTED_BAD else ""),
        hint="fix the rows, or leave them out with data.on_bad_image: skip",
    )


def _warn_of_conflicts(manifest: Manifest) -> None:
    """Warn of files with the same bytes in two classes: one of the labels is wrong."""
    by_content: dict[str, list[Sample]] = defaultdict(list)
    for sample in manifest.samples:
        by_content[sample.sha256].append(sample)
    conflicts = [same for same in by_content.values() if len({sample.label for sample in same}) > 1]
    if conflicts:
        _log.warning(
            "%s with two labels and the same bytes, such as %s; `mnft data check --fix FILE` lists "
            "what data.exclude can leave out",
            count(len(conflicts), "image stands", "images stand"),
            " and ".join(sample.path for sample in conflicts[0][:2]),
        )


def _warn_of_groups(manifest: Manifest) -> None:
    """Warn of groups in two splits, as given splits may have them."""
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in manifest.samples:
        if sample.group is not None:
            splits[sample.group].add(sample.split)
    if shared := sorted(name for name, found in splits.items() if len(found) > 1):
        _log.warning(
            "%s in two splits, such as %s; `mnft data check` lists them",
            count(len(shared), "group stands", "groups stand"),
            shared[0],
        )


def _prepare_unchecked(
    config: DataConfig,
    rules: LabelRules,
    scan: FolderScan,
    known: Container[str],
    on_progress: Progress,
) -> Manifest | None:
    """The manifest if all images may decode; None if some are known not to."""
    paths = [image.path for image in scan.images]
    inspections = scan_files(scan.root, paths, on_progress, known=_Everything())
    if _problems(inspections):
        return None
    manifest = split_folder(config, rules, scan, inspections)
    tested = [sample.path for sample in manifest.split("test")]
    checked = scan_files(scan.root, tested, known=known)
    return None if _problems(checked) else manifest


def _prepare(
    config: DataConfig,
    rules: LabelRules,
    scan: FolderScan,
    known: Container[str],
    on_progress: Progress,
) -> Manifest:
    paths = [image.path for image in scan.images]
    inspections = scan_files(scan.root, paths, on_progress, known=known)
    check_decodes(config, scan.root, inspections)
    return split_folder(config, rules, scan, inspections)


def list_known(config: DataConfig, root: Path, *, everything: bool = False) -> Container[str]:
    """SHA-256 of the contents of a data set that need not be decoded to be checked.

    Args:
        config: the `data` section.
        root: folder of the data set.
        everything: whether someone else will decode all of them.
    """
    if everything:
        return _Everything()
    if config.store == "off":
        return frozenset()
    return list_known_contents(choose_cache_folder(config.store), root)


def check_decodes(
    config: DataConfig, root: Path, inspections: Mapping[str, Inspection]
) -> dict[str, str]:
    """The files that do not decode, with the reason, where `data.on_bad_image` allows them.

    Raises:
        DataError: there are some, and `data.on_bad_image` is "fail".
    """
    bad = _problems(inspections)
    if bad and config.on_bad_image == "fail":
        raise DataError(
            f"{root}: {len(bad)} of {len(inspections)} files cannot be decoded:\n"
            + "\n".join(f"  {path}: {problem}" for path, problem in list(bad.items())[:_LISTED_BAD])
            + (f"\n  and {len(bad) - _LISTED_BAD} more" if len(bad) > _LISTED_BAD else ""),
            hint="".join(f"{cure}; else " for cure in list_cures(bad.values()))
            + "fix or remove them (`mnft data check --json` lists them all), or leave them out "
            "with data.on_bad_image: skip",
        )
    return bad


def split_folder(
    config: DataConfig,
    rules: LabelRules,
    scan: FolderScan,
    inspections: Mapping[str, Inspection],
) -> Manifest:
    """Split a data set as a config says; see `build_manifest`.

    Raises:
        DataError: the folder cannot be split like that.
        ConfigError: `data.split_from` names no run, or one that has nothing to say here.
    """
    return build_manifest(
        scan,
        inspections,
        rules,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
        known=None if config.split_from is None else _load_known_splits(config, scan, inspections),
    )


def _load_known_splits(
    config: DataConfig, scan: FolderScan, inspections: Mapping[str, Inspection]
) -> dict[str, str]:
    """The split of each content in the run of `data.split_from`."""
    run = Path(str(config.split_from)).expanduser()
    places = [run, run / SPLIT_FILE, run.parent / SPLIT_FILE]
    if "val" in scan.splits:
        raise ConfigError(
            f"{scan.root} has train and val folders, which decide the split already",
            key="data.split_from",
        )
    try:
        manifest = load_manifest(next((p for p in places if p.is_file()), run / SPLIT_FILE))
    except CheckpointError as error:
        hint = "name a run, such as runs/photos"
        raise ConfigError(error.message, hint=hint, key="data.split_from") from error
    known = {sample.sha256: sample.split for sample in manifest.samples}
    if known.keys().isdisjoint(inspection.sha256 for inspection in inspections.values()):
        raise ConfigError(
            f"{run} has seen none of the images of {scan.root}, so it says nothing of their split",
            key="data.split_from",
        )
    return known


def _problems(inspections: Mapping[str, Inspection]) -> dict[str, str]:
    return {path: i.problem for path, i in inspections.items() if i.problem is not None}
