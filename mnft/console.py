"""What a person sees: messages and progress on stderr, data on stdout; the only user of rich."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mnft.errors import Interrupted, MnftError
from mnft.results import EpochResult, StepProgress

# Terminal escapes in file and class names must not reach the terminal; nor surrogates, which stand
# for bytes that are no UTF-8 and which no stream takes.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED_BREAK = re.compile(r"\n(?!  |\Z)")
_UNLIMITED = 1_000_000


def show_error(error: MnftError | Interrupted) -> None:
    """Print `error: ...` and its hint to stderr."""
    label = "stopped" if isinstance(error, Interrupted) else "error"
    _say(Text.assemble((f"{label}: ", "bold red"), clean(error.message)))
    hint = getattr(error, "hint", None)
    if hint:
        _say(Text.assemble(("hint: ", "bold cyan"), clean(hint)))


def clean(text: str) -> str:
    """The text without the characters that would steer a terminal.

    The lines of a message are indented but for the first; any other line break is part of a name,
    which must not look like a message of its own.
    """
    return _NAMED_BREAK.sub(r"\\n", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def clean_line(text: str) -> str:
    """The same for what is one line, such as a cell of a table."""
    return clean(text).replace("\n", r"\n")


def warn(message: str) -> None:
    """Print `warning: ...` to stderr."""
    _say(Text.assemble(("warning: ", "bold yellow"), clean(message)))


def note(message: str) -> None:
    """Print a plain line to stderr."""
    _say(Text(clean(message)))


def done(message: str) -> None:
    """Print a line that tells of a success to stderr."""
    _say(Text(clean(message), style="bold green"))


def show_data(line: str) -> None:
    """Print a line of data to stdout, unwrapped."""
    sys.stdout.write(clean_line(line) + "\n")
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """Print one JSON object to stdout, in one line; control characters are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")
    sys.stdout.flush()


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    to_stderr: bool = False,
) -> None:
    """Print a table; a column whose values are all numbers (or end in a unit) is right-aligned."""
    table = Table(box=None, title=title, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    cells = [[clean_line(str(cell)) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(re.match(r"^(-?\d.*|-|)$", row[index]) for row in cells)
        table.add_column(clean(column), justify="right" if numeric else "left", no_wrap=not index)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    _console(stderr=to_stderr).print(table)


def show_facts(facts: Mapping[str, object], *, to_stderr: bool = False) -> None:
    """Print names and values in two columns."""
    width = max(map(len, facts), default=0) + 2
    console = _console(stderr=to_stderr)
    for name, value in facts.items():
        console.print(
            Text.assemble((f"{clean_line(name):<{width}}", "dim"), clean_line(str(value))),
            soft_wrap=True,
        )


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function `(done, total)` that draws a bar on a terminal and nothing elsewhere."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    with _bar(console, "{task.fields[rate]}") as bar:
        task = bar.add_task(clean(description), total=None, rate="")
        started = time.monotonic()

        def show(finished: int, total: int) -> None:
            rate = finished / max(time.monotonic() - started, 1e-9)
            left = _duration((total - finished) / rate) if finished and total else ""
            bar.update(
                task, completed=finished, total=total or None, rate=f"{rate:.0f}/s {left}".strip()
            )

        yield show


class TrainingDisplay:
    """An observer that draws a bar on a terminal and prints one plain line an epoch."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._bar: Progress | None = None
        self._started = time.monotonic()
        self._first_epoch: int | None = None

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._bar = _bar(
                self._console,
                "loss {task.fields[loss]:.3f}  acc {task.fields[accuracy]:.1%}"
                "  {task.fields[rate]:.0f} img/s  {task.fields[left]} left",
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def on_step(self, progress: StepProgress) -> None:
        """Move the bar."""
        if not self._bar:
            return
        if not self._bar.tasks:
            self._bar.add_task("", total=1, loss=0.0, accuracy=0.0, rate=0.0, left="")
        self._bar.update(
            self._bar.tasks[0].id,
            description=f"epoch {progress.epoch}/{progress.epochs}",
            completed=progress.step,
            total=progress.steps,
            loss=progress.loss,
            accuracy=progress.accuracy,
            rate=progress.images_per_s,
            left=self._time_left(progress),
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line, above the bar where there is one."""
        width = len(str(result.epochs))
        mark = "  best" if result.is_best else ""
        epoch = f"epoch {result.epoch:>{width}}/{result.epochs}"
        if result.stage == "head":
            epoch = f"{'head':<{len(epoch)}}"
        line = (
            f"{epoch}"
            f"  loss {result.train_loss:.4f}  acc {result.train_accuracy:6.2%}"
            f"  val_loss {result.val_loss:.4f}  val_acc {result.val_accuracy:6.2%}"
            f"  {result.images_per_s:.0f} img/s  {result.data_wait:.1%} wait"
            f"  {result.peak_memory_mb / 1000:.1f} GB  {result.seconds:.1f} s{mark}"
        )
        # Another console than the bar's would write into the bar's line.
        console = self._bar.console if self._bar else self._console
        console.print(Text(line), soft_wrap=True)

    def _time_left(self, progress: StepProgress) -> str:
        if self._first_epoch is None:
            self._first_epoch = progress.epoch
        finished = progress.epoch - self._first_epoch + progress.step / max(progress.steps, 1)
        ahead = progress.epochs - self._first_epoch + 1 - finished
        return _duration((time.monotonic() - self._started) / max(finished, 1e-6) * ahead)


def setup_logging(*, verbose: bool) -> None:
    """Send the library's log to stderr: warnings, and with `verbose` information too."""
    handler = _LogLines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


class _LogLines(logging.Handler):
    """The log in the words of this module, so that its names are cleaned too."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else note)(self.format(record))


def _bar(console: Console, fields: str) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn())
    return Progress(*columns, TextColumn(fields), console=console, transient=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `cli`; rich would end the process."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    """A console on the stream as it is now; off a terminal it neither wraps nor colours."""
    console = _Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )
    if not console.is_terminal:
        console.width = _UNLIMITED
        console.no_color = True
    return console


def _say(text: Text) -> None:
    _console(stderr=True).print(text, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
