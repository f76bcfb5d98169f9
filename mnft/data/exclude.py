"""The list of files to leave out: `mnft data check --fix` writes it, `data.exclude` names it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnft.data.folder import FolderScan
from mnft.data.labels import LabelRules
from mnft.errors import ConfigError

_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A folder without the files of a list.

    Attributes:
        scan: what is left.
        excluded: paths that were taken away.
        unknown: paths of the list that name no image of the folder.
    """

    scan: FolderScan
    excluded: Sequence[str]
    unknown: Sequence[str]


def exclude(scan: FolderScan, list_path: str | None, rules: LabelRules) -> Exclusion:
    """Take the files away that a list names.

    Args:
        scan: the data set.
        list_path: the list, or None.
        rules: what the labels are; a label whose images are all taken away becomes empty.

    Raises:
        ConfigError: there is no such list, or it cannot be read.
    """
    if list_path is None:
        return Exclusion(scan, (), ())
    listed = read_list(Path(list_path).expanduser())
    wanted = set(listed)
    images = tuple(image for image in scan.images if image.path not in wanted)
    excluded = [image for image in scan.images if image.path in wanted]
    left = {(image.split, name) for image in images for name in rules.parse(image.label)}
    emptied = {(i.split, name) for i in excluded for name in rules.parse(i.label)} - left
    empty = tuple(sorted({*scan.empty_classes, *emptied}, key=str))
    unusable = tuple(row for row in scan.unusable if row.path not in wanted)
    found = [image.path for image in excluded]
    found += [row.path for row in scan.unusable if row.path in wanted]
    unknown = sorted(wanted - set(found))
    scan = replace(scan, images=images, empty_classes=empty, unusable=unusable)
    return Exclusion(scan, found, unknown)


def read_list(path: Path) -> list[str]:
    """The paths of a list, in order.

    Raises:
        ConfigError: a list that is missing or not a text, or a line that is not a path.
    """
    paths = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if entry.startswith('"'):
            try:
                entry = str(json.loads(entry))
            except ValueError as error:
                raise ConfigError(
                    f"{path}, line {number}: not a JSON string: {entry[:80]}", key="data.exclude"
                ) from error
        paths.append(entry.removeprefix("./"))
    return paths


def read_text(path: Path) -> str:
    """The text of a list, with line feeds only.

    Raises:
        ConfigError: missing, too large, not UTF-8, or a file that cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: too large for a list of files", key="data.exclude")
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file, expected a list of files to leave out",
            hint="`mnft data check ... --fix FILE` writes one",
            key="data.exclude",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8", key="data.exclude") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}", key="data.exclude") from error
