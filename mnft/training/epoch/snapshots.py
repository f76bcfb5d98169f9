"""What may happen between two updates: a snapshot every few minutes, or the end after a signal."""

from __future__ import annotations

import time
from collections.abc import Callable

from mnft.signals import stop_request
from mnft.training.state import PartialEpoch, TrainState


class Snapshots:
    """Saves what an epoch has done so far, from time to time and before the process stops.

    Args:
        state: state of the training.
        save: writes the state.
        minutes: time between two snapshots; None saves only when a signal has come.
    """

    def __init__(
        self, state: TrainState, save: Callable[[TrainState], None], minutes: float | None
    ) -> None:
        self._state = state
        self._save = save
        self._seconds = None if minutes is None else 60 * minutes
        self._last = time.monotonic()

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has asked the training to stop."""
        return stop_request.pending

    def is_due(self) -> bool:
        """Whether to `take` one now."""
        late = self._seconds is not None and time.monotonic() - self._last >= self._seconds
        return late or self.is_stopping

    def take(self, partial: PartialEpoch) -> None:
        """Save the epoch so far.

        Raises:
            Interrupted: a signal has asked the training to stop.
        """
        self._state.partial = partial
        self._save(self._state)
        # The next update makes it out of date: an interruption after that must not save it again.
        self._state.partial = None
        self._last = time.monotonic()
        stop_request.raise_if_pending()
