"""What a worker does between two trainings."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest

from mnft.errors import Interrupted
from mnft.search.worker import free_memory
from mnft.signals import stop_request


class Last:
    """Gets a Ctrl-C while it is removed, where Python drops what the handler raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000):  # the handler runs between two steps
            pass


def test_a_signal_while_memory_is_freed_is_not_lost(monkeypatch: Any) -> None:
    def collect() -> None:
        last = Last()
        del last

    monkeypatch.setattr(gc, "collect", collect)
    with stop_request.handling_signals(), pytest.raises(Interrupted):
        free_memory()


@pytest.mark.filterwarnings("ignore:Exception ignored")
def test_a_signal_at_the_end_of_a_training_is_not_lost() -> None:
    with stop_request.handling_signals():
        last = Last()
        del last
        with pytest.raises(Interrupted):
            free_memory()
        free_memory()  # raised once
