"""Tables of labels: a CSV, TSV or Parquet file with a row for each image."""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnft.config.data import DataConfig
from mnft.data.folder import (
    SPLIT_NAMES,
    TABLE_SUFFIXES,
    FolderScan,
    ImageFile,
    LeftOut,
)
from mnft.errors import DataError

# Tables that stand among the images: Hugging Face's ImageFolder, and Roboflow's multi-label export.
INSIDE = ("metadata.csv", "_classes.csv")
# Names of columns that need no `data.columns`, the likeliest first; case does not matter.
_PATH = ("path", "file_name", "filename", "image", "image_path", "image_id", "file")
_LABEL = ("label", "class", "labels", "classes")
_SPLIT = ("split",)
_GROUP = ("group",)
_PRESENT, _ABSENT = {"1", "1.0", "true"}, {"0", "0.0", "false"}
_NEGATIVE = {"-1", "-1.0"}
_UNKNOWN = {"", "nan", *_NEGATIVE}
_DELIMITERS = ",;\t|"
_SEVERAL = "multilabel"
_MAX_SHOWN = 80  # characters of a path that is none


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: the line that it begins in, its cells by column, and how many there are."""

    line: int
    cells: Mapping[str, str]
    num_cells: int


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column holds what.

    Attributes:
        path: path of the image.
        label: label or labels; None where each label has a column.
        labels: the columns of 0 and 1, one for each label.
        split: split, or None.
        group: group, or None.
    """

    path: str
    label: str | None
    labels: tuple[str, ...]
    split: str | None
    group: str | None


def find_tables(root: Path) -> list[tuple[Path, str | None]]:
    """The tables that `data.root` names or that stand in its folders, with the split of each.

    Returns:
        The root itself where it is a table; `metadata.csv` or `_classes.csv` in it, or in its split
        folders; else nothing.
    """
    if root.is_file() and root.suffix.lower() in TABLE_SUFFIXES:
        return [(root, None)]
    if not root.is_dir():
        return []
    for name in INSIDE:
        if (root / name).is_file():
            return [(root / name, None)]
        folders = {f: SPLIT_NAMES.get(f.name.lower()) for f in sorted(root.iterdir())}
        splits = {f: split for f, split in folders.items() if split and f.is_dir()}
        tables: list[tuple[Path, str | None]] = [
            (f / name, split) for f, split in splits.items() if (f / name).is_file()
        ]
        if tables and len(tables) < len(splits):
            without = next(f for f in splits if not (f / name).is_file())
            raise DataError(
                f"{without}: no {name}, which {tables[0][0].parent} has",
                hint="every split folder needs one, or none",
            )
        if tables:
            return tables
    return []


def read(root: Path, tables: Sequence[tuple[Path, str | None]], config: DataConfig) -> FolderScan:
    """List the images of tables.

    Paths are relative to the folder of their table. Images may have one label each, several in one
    cell (`a;b`), or a column of 0 and 1 for each label, where an empty cell is not known. Rows that
    cannot be used are in `FolderScan.unusable`, with their line.

    Args:
        root: the table, or the folder that the tables stand in.
        tables: what `find_tables` found.
        config: the columns, the separator of labels, and the column of groups.

    Raises:
        DataError: a table that cannot be read, has no column for path or label, or no rows.
    """
    folder = root.parent if root.is_file() else root
    images: list[ImageFile] = []
    unusable: list[LeftOut] = []
    names: set[str] = set()
    several = False
    for table, given in tables:
        header, rows = _load(table)
        columns = _choose_columns(table, header, rows, config)
        names.update(columns.labels)
        inside = "" if table.parent == folder else f"{table.parent.relative_to(folder).as_posix()}/"
        for row in rows:
            path = row.cells.get(columns.path, "")[:_MAX_SHOWN]
            try:
                path = _normalise(inside, row.cells.get(columns.path, ""), folder)
                _check(row, len(header), columns, folder / path)
                label, is_plain = _read_label(row, columns, config.separator)
            except ValueError as error:
                where = f"{table.name}, line {row.line}"
                unusable.append(LeftOut(path or table.name, f"{where}: {error}"))
                continue
            several |= not is_plain
            split = SPLIT_NAMES[row.cells[columns.split].lower()] if columns.split else given
            group = row.cells[columns.group] if columns.group else ""
            images.append(ImageFile(path, label, split, group or None, row.line))
    images, conflicts = _join_repeated(images, tables[0][0].name)
    return FolderScan(
        folder,
        tuple(sorted(images, key=lambda image: image.path)),
        names=tuple(sorted(names)),
        task=_SEVERAL if several else "classify",
        unusable=(*unusable, *conflicts),
        table=tables[0][0],
        grouped_by=columns.group,
    )


def _load(table: Path) -> tuple[list[str], list[_Row]]:
    """The names of the columns, and the rows; cells are stripped and in composed Unicode."""
    rows: Iterator[tuple[int, Sequence[Any]]]
    try:
        if table.suffix.lower() == ".parquet":
            header, values = _load_parquet(table)
            rows = ((number, row) for number, row in enumerate(values, start=1))
        else:
            text = table.read_bytes().decode("utf-8-sig")
            # Excel writes `;` where the comma is the decimal sign.
            likely = "\t" if table.suffix.lower() == ".tsv" else _DELIMITERS
            delimiter = max(likely, key=text.partition("\n")[0].count)
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            header = next(lines, [])
            # A cell in quotes may hold line breaks: a row begins after the last line of another.
            begins, numbered = lines.line_num + 1, []
            for row in lines:
                numbered.append((begins, row))
                begins = lines.line_num + 1
            rows = iter(numbered)
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise DataError(f"{table}: not text in UTF-8", hint=hint) from error
    except csv.Error as error:
        raise DataError(f"{table}, line {lines.line_num}: {error}") from error
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    header = [_clean(name) for name in header]
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{table}: two columns are called {', '.join(doubled)}")
    found = [
        _Row(line, dict(zip(header, map(_clean, row), strict=False)), len(row))
        for line, row in rows
        if any(map(_clean, row))
    ]
    if not header:
        raise DataError(f"{table}: is empty")
    if not found:
        raise DataError(f"{table}: found no rows below the names of the columns")
    return header, found


def _load_parquet(table: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{table}: Parquet needs pyarrow, which is not installed",
            hint="pip install pyarrow, or save the table as CSV",
        ) from error
    try:
        content = parquet.read_table(table)
    except ValueError as error:  # pyarrow's own errors are of this kind
        raise DataError(f"{table}: not a Parquet file: {error}") from error
    return list(content.column_names), [list(row.values()) for row in content.to_pylist()]


def _clean(cell: Any) -> str:
    if cell is None or cell != cell:  # NaN, which is unequal to itself
        return ""
    return unicodedata.normalize("NFC", str(cell).strip())


def _choose_columns(
    table: Path, header: Sequence[str], rows: Sequence[_Row], config: DataConfig
) -> _Columns:
    """Find the columns by `data.columns`, or by the names that are usual."""
    chosen: Mapping[str, Any] = config.columns

    def find(what: str, usual: Sequence[str]) -> str | None:
        if (name := chosen.get(what)) is not None:
            if name not in header:
                raise _no_column(table, repr(name), header, f"data.columns.{what}")
            return str(name)
        by_name = {name.lower(): name for name in reversed(header)}
        return next((by_name[name] for name in usual if name in by_name), None)

    path, split, group = find("path", _PATH), find("split", _SPLIT), find("group", _GROUP)
    if config.group is not None:  # a column, or a regular expression on the path
        group = config.group if config.group in header else None
    if split is not None and not any(row.cells.get(split) for row in rows):
        split = None
    if path is None:
        raise _no_column(table, "for the path of the image", header, "data.columns.path")
    if labels := chosen.get("labels"):
        for name in labels:
            if name not in header:
                raise _no_column(table, repr(name), header, "data.columns.labels")
        return _Columns(path, None, tuple(labels), split, group)
    label = find("label", _LABEL)
    if label is not None:
        return _Columns(path, label, (), split, group)
    known = _PRESENT | _ABSENT | _UNKNOWN
    others = [name for name in header if name and name not in {path, split, group}]
    cells = {name: {row.cells.get(name, "").lower() for row in rows} for name in others}
    binary = tuple(name for name in others if cells[name] <= known)
    if not any(cells[name] & (_PRESENT | _ABSENT) for name in binary):
        raise _no_column(
            table, "for the label, nor columns of 0 and 1", header, "data.columns.label"
        )
    values = set().union(*(cells[name] for name in binary))
    if values & _NEGATIVE and not values & _ABSENT:
        raise DataError(
            f"{table}: the columns {', '.join(binary[:3])} have 1 and -1, and no 0",
            hint="write 0 where a label is absent; -1 means that it is not known",
        )
    if bad := next((name for name in binary if ";" in name or name.startswith("?")), None):
        raise DataError(f"{table}: {bad!r} cannot be a label", hint="rename the column")
    return _Columns(path, None, binary, split, group)


def _no_column(table: Path, what: str, header: Sequence[str], key: str) -> DataError:
    some = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
    hint = f"`{key}` names it: --set {key}=NAME"
    return DataError(f"{table}: no column {what}; found {some}", hint=hint, key=key)


def _normalise(inside: str, path: str, folder: Path) -> str:
    """A path as all of mnft writes it: relative to the folder, forward slashes, no `./`.

    Raises:
        ValueError: it cannot be a path.
    """
    if not path:
        return ""
    decomposed = unicodedata.normalize("NFD", path)  # which archives made on a Mac have
    spellings = dict.fromkeys((path, decomposed, path.replace("\\", "/")))
    try:
        found = next((p for p in spellings if (folder / inside / p).exists()), path)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    whole = posixpath.normpath(posixpath.join(inside, found))
    if posixpath.isabs(whole) and Path(whole).is_relative_to(folder.absolute()):
        return Path(whole).relative_to(folder.absolute()).as_posix()
    return whole


def _check(row: _Row, width: int, columns: _Columns, file: Path) -> None:
    """Raise a ValueError that says why a row cannot be used."""
    if row.num_cells != width:
        raise ValueError(f"found {row.num_cells} cells, expected {width}")
    if not row.cells[columns.path]:
        raise ValueError("no path")
    if columns.split and row.cells[columns.split].lower() not in SPLIT_NAMES:
        found = row.cells[columns.split]
        raise ValueError(f"split {found!r}, expected train, val or test")
    if not file.is_file():
        raise ValueError("no such file" if not file.exists() else "not a file")


def _read_label(row: _Row, columns: _Columns, separator: str) -> tuple[str, bool]:
    """The label text of a row, and whether it is that of exactly one label.

    The text names the labels of the image, with `;` between them, and with a `?` before those that
    are not known.
    """
    if columns.label is not None:
        cell = row.cells[columns.label]
        if cell == "?":
            raise ValueError("'?' cannot be a label; leave the cell empty")
        if not separator or separator not in cell:
            return cell, True
        names = sorted({name.strip() for name in cell.split(separator)} - {""})
        if bad := next((name for name in names if ";" in name or name == "?"), None):
            raise ValueError(f"{bad!r} cannot be a label")
        return ";".join(names), False
    parts = []
    for name in columns.labels:
        value = row.cells[name].lower()
        if value not in _PRESENT | _ABSENT | _UNKNOWN:
            raise ValueError(f"{name} is {row.cells[name]!r}, expected 0, 1 or nothing")
        if value not in _ABSENT:
            parts.append(name if value in _PRESENT else f"?{name}")
    return ";".join(parts), len(parts) == 1 and not parts[0].startswith("?")


def _join_repeated(
    images: Sequence[ImageFile], table: str
) -> tuple[list[ImageFile], list[LeftOut]]:
    """Rows that repeat another count once; where they differ, a person must say which is right."""
    by_path: dict[str, list[ImageFile]] = {}
    for image in images:
        by_path.setdefault(image.path, []).append(image)
    joined, conflicts = [], []
    for path, same in by_path.items():
        if len({(image.label, image.split, image.group) for image in same}) == 1:
            joined.append(same[0])
            continue
        lines = " and ".join(str(image.line) for image in same)
        what = "label" if len({image.label for image in same}) > 1 else "split or group"
        reason = f"{table}, lines {lines}: the same path with another {what}"
        conflicts.append(LeftOut(path, reason))
    return joined, conflicts
