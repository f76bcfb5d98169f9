"""What a person sees: messages and progress on stderr, data on stdout; the only user of rich."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mnft.errors import Interrupted, MnftError
from mnft.layout import GAP, Figure, fit_line, split_columns
from mnft.reporter import Reporter
from mnft.results import EpochResult, StepProgress

# Terminal escapes in file and class names must not reach the terminal; nor surrogates, which stand
# for bytes that are no UTF-8 and which no stream takes.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED_BREAK = re.compile(r"\n(?!  |\Z)")
_UNLIMITED = 1_000_000
_BAR_WIDTH = 10
# The console of the bar that is on the screen: another one would write into the bar's line.
_live: list[Console] = []


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
    """Print a table; a column whose values are all numbers (or end in a unit) is right-aligned.

    On a terminal that is too narrow long texts are wrapped, and columns that find no room follow
    in further tables below, each with the first column again. No figure is ever cut.

    Args:
        columns: the headings; the first column names the rows.
        rows: a cell for each column.
        title: a line above.
        to_stderr: print to stderr, as what is not the command's result.
    """
    console = _console(stderr=to_stderr)
    table = [[clean(c) for c in columns], *([clean_line(str(c)) for c in row] for row in rows)]
    figures, widths = [], []
    for heading, *cells in zip(*table, strict=True):
        figures.append(bool(cells) and all(re.match(r"^(-?\d.*|-|)$", cell) for cell in cells))
        width = max(cell_len(line) for cell in (heading, *cells) for line in cell.split("\n"))
        widths.append(width if figures[-1] else min(width, max(12, console.width // 4)))
    for number, chosen in enumerate(split_columns(widths, console.width)):
        part = Table(
            box=None,
            title=None if number else title,
            title_justify="left",
            pad_edge=False,
            padding=(0, GAP, 0, 0),
        )
        for index in chosen:
            # rich cuts what must not be wrapped, so a figure too wide for the terminal may be.
            fits = widths[index] + (widths[0] + GAP if index else 0) <= console.width
            part.add_column(
                table[0][index],
                justify="right" if figures[index] else "left",
                no_wrap=figures[index] and fits,
                overflow="fold",
            )
        for row in table[1:]:
            part.add_row(*(Text(row[index]) for index in chosen))
        if number:
            console.print()
        console.print(part)


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
def loading() -> Iterator[None]:
    """On a terminal, show a spinner while what is slow to import is imported: torch and timm."""
    console = _console(stderr=True)
    if not console.is_terminal or "torch" in sys.modules:
        yield
        return
    name = "dots" if console.encoding.startswith("utf") else "line"
    # Without redirection: what is imported here may keep the streams that it finds.
    with Live(
        Spinner(name, "loading torch"),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function `(done, total)` that draws a bar on a terminal and nothing elsewhere.

    A total of 0 is not known, and none is shown. Within another bar nothing is drawn.
    """
    console = _console(stderr=True)
    if not console.is_terminal or _live:
        yield lambda _done, _total: None
        return
    name = clean(description)
    room = console.width - len(name) - _BAR_WIDTH - 2
    with _drawn_bar(console) as bar:
        task = bar.add_task(name, total=None, figures="")
        begun: tuple[float, int] | None = None

        def show(finished: int, total: int) -> None:
            nonlocal begun
            begun = begun or (time.monotonic(), finished if total else 0)
            rate = (finished - begun[1]) / max(time.monotonic() - begun[0], 1e-9)
            figures = [
                Figure(f"{finished:,}/{total:,}" if total else f"{finished:,}", 0),
                Figure(f"{rate:.{0 if rate >= 10 else 1}f}/s" if rate else "", 2),
                Figure(_duration((total - finished) / rate) if rate and total else "", 1),
            ]
            bar.update(
                task, completed=finished, total=total or None, figures=fit_line(figures, room)
            )

        yield show


class TerminalReporter(Reporter):
    """Shows what library code reports: messages on stderr, and a bar on a terminal."""

    def note(self, message: str) -> None:
        """Print a plain line."""
        note(message)

    def warn(self, message: str) -> None:
        """Print `warning: ...`."""
        warn(message)

    def error(self, error: MnftError | Interrupted) -> None:
        """Print `error: ...` and its hint."""
        show_error(error)

    def track(self, description: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Draw a bar."""
        return progress(description)


REPORTER = TerminalReporter()


class TrainingDisplay(TerminalReporter):
    """Also draws a bar for the updates of an epoch, and prints one plain line an epoch."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._begun: tuple[float, float] | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def on_step(self, progress: StepProgress) -> None:
        """Move the bar."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            # Not earlier: the features of the head stage have a bar of their own.
            self._bar = self._stack.enter_context(_drawn_bar(self._console))
            self._bar.add_task("", total=None, figures="")
        epoch = f"epoch {progress.epoch}/{progress.epochs}"
        figures = [
            Figure(f"{progress.step}/{progress.steps}", 0),
            Figure(f"loss {progress.loss:.3f}", 1, 10),
            Figure(f"acc {progress.accuracy:.1%}", 3, 10),
            Figure(f"{progress.images_per_s:.0f} img/s", 4, 10),
            Figure(self._time_left(progress), 2, 9),
        ]
        self._bar.update(
            self._bar.tasks[0].id,
            description=epoch,
            completed=progress.step,
            total=progress.steps,
            figures=fit_line(figures, self._console.width - len(epoch) - _BAR_WIDTH - 2),
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line, above the bar where there is one."""
        width = len(str(result.epochs))
        epoch = f"epoch {result.epoch:>{width}}/{result.epochs}"
        if result.stage == "head":
            epoch = f"{'head':<{len(epoch)}}"
        waited = "" if result.data_wait is None else f"{result.data_wait:.1%} wait"
        reduced = result.threads < result.max_threads
        threads = f"{result.threads} of {result.max_threads} threads" if reduced else ""
        figures = [
            Figure(epoch, 0),
            Figure(f"loss {result.train_loss:.4f}", 3, 11),
            Figure(f"acc {result.train_accuracy:6.2%}", 5, 11),
            Figure(f"val_loss {result.val_loss:.4f}", 4, 15),
            Figure(f"val_acc {result.val_accuracy:6.2%}", 1, 15),
            Figure(f"{result.images_per_s:.0f} img/s", 7, 11),
            Figure(waited, 9, 10),
            Figure(f"{result.peak_memory_mb / 1000:.1f} GB", 8, 7),
            Figure(f"{result.seconds:.1f} s", 6, 7),
            Figure(threads, 10),
            Figure("best" if result.is_best else "", 2, 4),
        ]
        line = fit_line(figures, self._console.width)
        self._console.print(Text(line), soft_wrap=True)

    def _time_left(self, progress: StepProgress) -> str:
        now = time.monotonic()
        finished = progress.epoch - 1 + progress.step / max(progress.steps, 1)  # epochs
        if self._begun is None:
            self._begun = now, finished
        seconds, done = now - self._begun[0], finished - self._begun[1]
        return f"{_duration(seconds / done * (progress.epochs - finished))} left" if done else ""


def setup_logging(*, verbose: bool) -> None:
    """Send the library's log to stderr: warnings, and with `verbose` information too."""
    handler = _LogLines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


class _LogLines(logging.Handler):
    """The log in the words of this module, so that its names are cleaned too."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else note)(self.format(record))


@contextmanager
def _drawn_bar(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, which everything that is printed meanwhile is put above."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        _live.append(console)
        try:
            yield bar
        finally:
            _live.remove(console)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `cli`; rich would end the process."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    """A console on the stream as it is now; off a terminal it neither wraps nor colours."""
    if stderr and _live:
        return _live[-1]
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
