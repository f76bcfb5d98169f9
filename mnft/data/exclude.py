"""The list of files to leave out: `mnft data check --fix` writes it, `data.exclude` names it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mnft import files
from mnft.data.folder import FolderScan
from mnft.errors import ConfigError

if TYPE_CHECKING:  # a training reads lists, and must not wait for what finds the files
    from mnft.data.check.findings import Finding

_HEAD = "# mnft: files to leave out; data.exclude names this list"
_EXPLANATION = """\
# One path a line, relative to the image folder. Lines with # are comments; a path in "double
# quotes" is a JSON string. Nothing was deleted: take a line away to use the file again.
"""
_MAX_BYTES = 1 << 30
# A path that another reader of lines would take for something else.
_QUOTED = re.compile(r'^[#"\s]|\s$|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A folder without the files of a list.

    Attributes:
        scan: what is left.
        excluded: paths that were taken away.
        unknown: paths of the list that are no image of the folder.
    """

    scan: FolderScan
    excluded: Sequence[str]
    unknown: Sequence[str]


def exclude(scan: FolderScan, list_path: str | None) -> Exclusion:
    """Take the files away that a list names.

    Raises:
        ConfigError: there is no such list, or it cannot be read.
    """
    if list_path is None:
        return Exclusion(scan, (), ())
    listed = read_list(Path(list_path).expanduser())
    wanted = set(listed)
    images = tuple(image for image in scan.images if image.path not in wanted)
    excluded = [image for image in scan.images if image.path in wanted]
    left = {(image.split, image.class_name) for image in images}
    emptied = {(i.split, i.class_name) for i in excluded} - left
    empty = tuple(sorted({*scan.empty_classes, *emptied}, key=str))
    found = [image.path for image in excluded]
    unknown = sorted(wanted - set(found))
    return Exclusion(replace(scan, images=images, empty_classes=empty), found, unknown)


def read_list(path: Path) -> list[str]:
    """The paths of a list, in order.

    Raises:
        ConfigError: missing, no text, or with a line that is no path.
    """
    paths = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if entry.startswith('"'):
            entry = _unquote(entry, f"{path}, line {number}")
        paths.append(entry.removeprefix("./"))
    return paths


def write_list(path: Path, findings: Sequence[Finding]) -> int:
    """Write what findings leave out; a list that is there already is kept, and added to.

    Args:
        path: of the list.
        findings: with `leave_out` (lines) and `look_at` (comments, for a person to decide).

    Returns:
        Files that were added.

    Raises:
        ConfigError: the file is there and is no such list, or cannot be written.
    """
    text, known = _HEAD + "\n" + _EXPLANATION, set[str]()
    if path.exists():
        text = _read(path)
        if not text.startswith(_HEAD):
            raise ConfigError(
                f"{path}: is there already and is no list of files to leave out",
                hint="name another file; it was left as it is",
            )
        text = text if text.endswith("\n") else text + "\n"
        known = set(read_list(path))
    left = {entry for finding in findings for entry in finding.leave_out} - known
    seen, parts = set(known), [text]
    for finding in findings:
        reason = _one_line(f"{finding.kind}: {finding.message}")
        active = [entry for entry in finding.leave_out if entry not in seen]
        doubtful = [e for e in finding.look_at if e not in seen | left and _comment(e) not in text]
        if not active and not doubtful:
            continue
        kept = [p for p in finding.paths if p not in finding.leave_out + finding.look_at]
        beside = f" (stays: {', '.join(map(_quote, kept[:3]))})" if kept else ""
        parts.append(f"\n# {reason}{beside}\n")
        parts += [f"{_quote(entry)}\n" for entry in active]
        parts += [f"{_comment(entry)}\n" for entry in doubtful]
        seen |= set(active) | set(doubtful)
    _write(path, "".join(parts))
    return len(left)


def _read(path: Path) -> str:
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


def _write(path: Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _unquote(entry: str, where: str) -> str:
    try:
        value = json.loads(entry)
    except ValueError as error:
        raise ConfigError(
            f"{where}: not a JSON string: {entry[:80]}", key="data.exclude"
        ) from error
    return str(value)


def _quote(path: str) -> str:
    return json.dumps(path) if _QUOTED.search(path) else path


def _comment(path: str) -> str:
    return f"# look: {_quote(path)}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
