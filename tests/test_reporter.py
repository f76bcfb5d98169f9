"""What library code reports: nothing unless somebody listens, and counts as totals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mnft.errors import DataError
from mnft.reporter import SILENT, Progress, Reporter
from mnft.results import StepProgress


class Listener(Reporter):
    """Keeps what is shown of each track."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.events: list[str] = []

    @contextmanager
    def track(self, description: str) -> Iterator[Progress]:
        self.events.append(f"begin {description}")
        try:
            yield lambda done, total: self.shown.append((done, total))
        finally:
            self.events.append("end")


def test_counts_since_the_last_call_become_totals() -> None:
    listener = Listener()
    with listener.count("features", 10) as advance:
        assert listener.shown == [(0, 10)]  # the total is known before the first batch
        advance(4)
        advance(0)
        advance(6)
    assert listener.shown == [(0, 10), (4, 10), (4, 10), (10, 10)]
    assert listener.events == ["begin features", "end"]


def test_a_count_that_fails_ends_its_track() -> None:
    listener = Listener()
    with pytest.raises(DataError), listener.count("features", 10) as advance:
        advance(1)
        raise DataError("x")
    assert listener.events == ["begin features", "end"]


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    SILENT.note("a")
    SILENT.warn("b")
    SILENT.error(DataError("c"))
    SILENT.on_step(StepProgress(1, 2, 1, 2, {"loss": 1.0}, 9.0))
    with SILENT.track("d") as show, SILENT.count("e", 2) as advance:
        show(1, 2)
        advance(1)
    assert capfd.readouterr() == ("", "")
