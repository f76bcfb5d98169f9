"""How library code tells a person what it does; silent unless the caller says who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mnft.errors import Interrupted, MnftError
from mnft.results import EpochResult, StepProgress

# Called with the items done and all items; 0 where their number is not known.
Progress = Callable[[int, int], None]


class Reporter:
    """Receives messages and progress, and drops them; `mnft.console` has one that shows them."""

    def note(self, message: str) -> None:
        """Tell what was found or chosen."""

    def warn(self, message: str) -> None:
        """Tell what may be wrong, although the work goes on."""

    def error(self, error: MnftError | Interrupted) -> None:
        """Tell why the work ends."""

    def track(self, description: str) -> AbstractContextManager[Progress]:  # noqa: ARG002
        """Give a function to call with the items done and all items (0 if not known)."""
        return nullcontext(lambda _done, _total: None)

    @contextmanager
    def count(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function to call with the items that were done since the last call."""
        done = 0
        with self.track(description) as show:
            show(0, total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                show(done, total)

            yield advance

    def on_step(self, progress: StepProgress) -> None:
        """Called a few times a second within an epoch."""

    def on_epoch(self, result: EpochResult) -> None:
        """Called once at the end of each epoch."""


SILENT = Reporter()
