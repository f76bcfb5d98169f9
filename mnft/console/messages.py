"""Messages on stderr, data on stdout, tables; a console of rich for each stream as it is now."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mnft.console.wrap import wrap
from mnft.errors import Interrupted, MnftError
from mnft.text import GAP, split_columns

# Terminal escapes in file and class names must not reach the terminal; nor surrogates, which stand
# for bytes that are no UTF-8 and which no stream takes.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED_BREAK = re.compile(r"\n(?!  |\Z)")
# The first column of lines such as "recipe   train.epochs: 20".
_COLUMN = re.compile(r"\S+ {2,}")
_UNLIMITED = 1_000_000
_FULL_WIDTH = 80
# The console of the bar that is on the screen: another one would write into the bar's line.
live_bars: list[Console] = []


def show_error(error: MnftError | Interrupted) -> None:
    """Print `error: ...` and its hint to stderr."""
    label = "stopped" if isinstance(error, Interrupted) else "error"
    _say(error.message, label=f"{label}: ", style="bold red")
    if hint := getattr(error, "hint", None):
        _say(hint, label="hint: ", style="bold cyan")


def clean(text: str) -> str:
    """The text without the characters that would steer a terminal.

    All lines of a message except the first are indented; any other line break is part of a name,
    which must not look like a message of its own.
    """
    return _NAMED_BREAK.sub(r"\\n", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def clean_line(text: str) -> str:
    """The same for what is one line, such as a cell of a table."""
    return clean(text).replace("\n", r"\n")


def warn(message: str) -> None:
    """Print `warning: ...` to stderr."""
    _say(message, label="warning: ", style="bold yellow")


def note(message: str, *, detail: str = "") -> None:
    """Print a plain line to stderr.

    Args:
        message: the line.
        detail: what follows it, except on a terminal of fewer than 80 columns.
    """
    has_room = get_console(stderr=True).width >= _FULL_WIDTH
    _say(f"{message}  {detail}" if detail and has_room else message)


def done(message: str) -> None:
    """Print a line that tells of a success to stderr."""
    _say(message, style="bold green")


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
    console = get_console(stderr=to_stderr)
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
    for name, value in facts.items():
        label = f"{clean_line(name):<{width}}"
        _say(clean_line(str(value)), label=label, style="dim", to_stderr=to_stderr)


@contextmanager
def loading() -> Iterator[None]:
    """On a terminal, show a spinner while what is slow to import is imported: torch and timm."""
    console = get_console(stderr=True)
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


def setup_logging(*, verbose: bool) -> None:
    """Send the library's log to stderr: warnings, and with `verbose` information too."""
    handler = _LogLines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


class _LogLines(logging.Handler):
    """The log in the words of this module, so that its names are cleaned too."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else note)(self.format(record))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `cli`; rich would end the process."""
        raise BrokenPipeError


def get_console(*, stderr: bool) -> Console:
    """A console on the stream as it is now; off a terminal it neither wraps nor colours."""
    if stderr and live_bars:
        return live_bars[-1]
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


def _say(message: str, *, label: str = "", style: str = "", to_stderr: bool = True) -> None:
    """Print a message; a terminal gets line breaks between words, any other stream none.

    Args:
        message: the text; its lines after the first are indented.
        label: text in front of it, which the following lines are indented to.
        style: rich's style of the label, or of the whole where there is no label.
        to_stderr: the stream.
    """
    console = get_console(stderr=to_stderr)
    first, *others = clean(message).split("\n")
    indent = len(label) or (len(found[0]) if (found := _COLUMN.match(first)) else 0)
    lines = wrap(label + first, console.width, indent=indent)
    for line in others:
        lines += wrap(line, console.width, indent=len(line) - len(line.lstrip()) + 2)
    text = Text("\n".join(lines), style="" if label else style)
    text.stylize(style, 0, len(label))
    console.print(text, soft_wrap=True)
