"""`mnft predict`: name what is in images."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from numpy.typing import NDArray

from mnft import console, files
from mnft.data.folder import list_images
from mnft.data.manifest import Sample
from mnft.device.machine import Machine, open_machine
from mnft.errors import ConfigError, DataError
from mnft.evaluation.checkpoint import open_checkpoint
from mnft.model.bundle import Bundle
from mnft.report.heat_files import HeatFiles
from mnft.reporter import SILENT
from mnft.streams import is_stdout_closed
from mnft.tasks import open_task
from mnft.tasks.outputs import Answers, Outputs
from mnft.text import guard_formula
from mnft.training.eval_batches import EvalOptions, open_eval_batches
from mnft.training.inference import compute_outputs

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """Which images to predict with which model, and where to write the rows.

    Attributes:
        checkpoint: a run, a model folder or an exported file.
        inputs: files, folders, globs, or "-" for a list on standard input.
        output: the file to write; None for standard output.
        limit: labels to name for each image; fewer if the model knows fewer.
        as_json_lines: whether to write a JSON object a line instead of CSV.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images in a batch.
        workers: loading processes; None chooses their number.
        explain: folder for heat maps; None for none.
    """

    checkpoint: Path
    inputs: Sequence[str]
    output: Path | None
    limit: int
    as_json_lines: bool
    device: str
    batch_size: int
    workers: int | None
    explain: Path | None = None


class _Row(NamedTuple):
    """An image: its path as it is shown, its (K,) outputs or why it could not be read, its file."""

    path: str
    values: NDArray[Any] | None
    error: str | None
    file: Path


def run(request: Request) -> None:
    """Predict the classes of images and write a row for each, in their order.

    Raises:
        MnftError: no model, no images, nowhere to write the rows, or no image that could be read.
    """
    output = request.output
    if output is None and is_stdout_closed():
        raise ConfigError(
            "standard output is closed, so the rows would be lost", hint="name a file: -o FILE.csv"
        )
    bundle = open_checkpoint(request.checkpoint).bundle
    paths = list(_expand(request.inputs))  # with repetitions: the rows follow the given list
    if not paths:
        raise DataError("found no images", hint="name files, folders, globs, or - for a list")
    answers = open_task(bundle.labels, bundle.task, bundle.settings).build_answers(request.limit)
    machine = open_machine(request.device)
    machine.place(bundle.model)
    workers = request.workers
    if len(paths) <= request.batch_size:  # starting processes takes longer than decoding these
        workers = request.workers or 0
    options = EvalOptions(request.batch_size, workers, allow_bad=True)
    rows = _predict(bundle, paths, machine, options, request)
    if request.explain is not None:
        rows = _explain(rows, HeatFiles(request.explain, bundle, answers))
    if output:
        failed = _write_file(rows, output, answers, request)
        console.note(f"written to {output}")
    else:
        failed = _write(rows, sys.stdout, answers, request)
    if request.explain is not None:
        console.note(f"heat maps are in {request.explain}")
    if failed == len(paths):
        if failed == 1:
            raise DataError("the image could not be read; its row says why")
        raise DataError(f"none of the {failed} images could be read; each row says why")
    if failed:
        console.warn(f"{failed} of {len(paths)} images could not be read; their rows say why")


def _expand(inputs: Sequence[str]) -> Iterator[Path]:
    """Files as named, below folders, matched by globs, and listed on standard input."""
    for text in inputs:
        if text == "-":
            # As bytes: names need not be valid UTF-8.
            lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            yield from (Path(os.fsdecode(line)) for line in lines if line)
        elif not text:
            raise DataError("found an empty file name", hint="is a shell variable empty?")
        elif not _exists(Path(text)) and glob.has_magic(text):
            # Path.glob takes no absolute patterns.
            matches = sorted(Path(m) for m in glob.glob(text, recursive=True))  # noqa: PTH207
            if not matches:
                raise DataError(f"{text}: matches no file")
            for match in matches:
                yield from _expand_path(match)
        else:
            yield from _expand_path(Path(text))


def _expand_path(path: Path) -> list[Path]:
    """The images below a folder, or the file; one that is missing gets a row that says so."""
    return list_images(path) if _exists(path) and path.is_dir() else [path]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _predict(
    bundle: Bundle,
    paths: list[Path],
    machine: Machine,
    options: EvalOptions,
    request: Request,
) -> Iterator[_Row]:
    """Rows in the order of `paths`, a chunk at a time, so that a long list takes little memory.

    The bar is gone before rows are given, which may go to the same terminal. The reader of a pipe
    may show them there at any later moment, so with a pipe there is a bar before the first row
    only.
    """
    to_pipe = request.output is None and _is_pipe(sys.stdout)
    for start in range(0, len(paths), _CHUNK):
        reporter = SILENT if start and to_pipe else console.REPORTER
        with reporter.track("predicting") as on_progress:
            on_progress(start, len(paths))
            chunk = paths[start : start + _CHUNK]
            done = start

            def advance(count: int, on_progress: Callable[[int, int], None] = on_progress) -> None:
                nonlocal done
                done += count
                on_progress(done, len(paths))

            outputs = compute_outputs(
                bundle.model,
                open_eval_batches(
                    Path(),
                    [Sample(str(path), "", "all", "") for path in chunk],
                    [-1] * len(chunk),
                    bundle.preprocessing,
                    machine,
                    options=options,
                ),
                machine,
                num_outputs=len(bundle.labels),
                on_images=advance,
            )
        yield from _rows(chunk, outputs)


def _explain(rows: Iterator[_Row], heat_files: HeatFiles) -> Iterator[_Row]:
    """The same rows, after the heat maps of each are written."""
    for row in rows:
        if row.values is not None:
            heat_files.write(row.file, row.values)
        yield row


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except OSError:  # a stream without a file
        return False


def _rows(paths: list[Path], outputs: Outputs) -> Iterator[_Row]:
    values = dict(zip(outputs.positions.tolist(), outputs.values, strict=True))
    for position, path in enumerate(paths):
        if (bad := outputs.bad.get(position)) is not None:
            yield _Row(_printable(path), None, bad.reason, path)
        else:
            yield _Row(_printable(path), values[position], None, path)


def _printable(path: Path) -> str:
    """The name as UTF-8; bytes that are none are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _write_file(rows: Iterator[_Row], output: Path, answers: Answers, request: Request) -> int:
    """Write the rows to a file, all or nothing; gives the number of images not read."""
    if output.is_dir():
        raise DataError(f"{output}: is a folder, expected the name of a file to write")
    try:
        if _exists(output) and not output.is_file():  # a pipe or a device stays what it is
            with output.open("w", encoding="utf-8", newline="") as stream:
                return _write(rows, stream, answers, request)
        with (
            files.atomic_path(output.resolve()) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as stream,
        ):
            return _write(rows, stream, answers, request)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror}") from error


def _write(rows: Iterator[_Row], stream: TextIO, answers: Answers, request: Request) -> int:
    """Write the rows; gives the number of images that could not be read."""
    failed = 0
    # A file and a pipe get names as they are.
    show = console.clean if stream.isatty() else str
    headings = answers.headings
    if not request.as_json_lines:
        stream.write(_csv_line(["path", *headings, "error"]))
    for row in rows:
        failed += row.error is not None
        if request.as_json_lines:
            entry = {"path": row.path, **answers.as_record(row.values), "error": row.error}
            stream.write(show(json.dumps(entry, ensure_ascii=False)) + "\n")
        else:
            cells = [""] * len(headings) if row.values is None else answers.as_cells(row.values)
            stream.write(show(_csv_line([row.path, *cells, row.error or ""])))
        stream.flush()
    return failed


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    # Only characters of the line's end are quoted, so \r must be one of them.
    csv.writer(line, lineterminator="\r\n").writerow(guard_formula(cell) for cell in cells)
    return line.getvalue().removesuffix("\r\n") + "\n"
