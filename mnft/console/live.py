"""A table that is drawn again and again on a terminal, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnft.console.messages import clean_line, get_console, live_bars
from mnft.text import GAP


class LiveTable:
    """A table on stderr that disappears at the end of the block; messages appear above it."""

    def __init__(self) -> None:
        self._console = get_console(stderr=True)
        self._stack = ExitStack()
        self._live: Live | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    @property
    def room(self) -> int:
        """The number of rows that fit below the headings."""
        return max(3, self._console.height - 6)

    def __enter__(self) -> LiveTable:
        if self.is_shown:
            live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live = self._stack.enter_context(live)
            live_bars.append(self._console)
            self._stack.callback(live_bars.remove, self._console)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._live = None

    def show(self, headings: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> None:
        """Draw the table with a line below."""
        if self._live is None:
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for heading in headings:
            table.add_column(clean_line(heading), no_wrap=True)
        for row in rows:
            table.add_row(*(Text(clean_line(str(cell))) for cell in row))
        self._live.update(Group(table, Text(clean_line(caption), style="dim")))
