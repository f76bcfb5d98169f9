"""A reporter that writes down the progress it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mnft.reporter import Progress, Reporter


class Recorder(Reporter):
    """Keeps (description, done, total); an optional function may interrupt the work."""

    def __init__(self, interrupt: Callable[[str, int], None] = lambda *_: None) -> None:
        self.seen: list[tuple[str, int, int]] = []
        self._interrupt = interrupt

    @contextmanager
    def track(self, description: str) -> Iterator[Progress]:
        def show(done: int, total: int) -> None:
            self.seen.append((description, done, total))
            self._interrupt(description, done)

        yield show
