"""Progress bars and the lines of a training, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mnft.console.messages import clean, get_console, live_bars, note, show_error, warn
from mnft.errors import Interrupted, MnftError
from mnft.reporter import Reporter
from mnft.results import EpochResult, StepProgress
from mnft.text import Figure, fit_line

_BAR_WIDTH = 10


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function `(done, total)` that draws a bar on a terminal and nothing elsewhere.

    A total of 0 is not known, and none is shown. Within another bar nothing is drawn.
    """
    console = get_console(stderr=True)
    if not console.is_terminal or live_bars:
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
        self.get_console = get_console(stderr=True)
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._begun: tuple[float, float] | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def on_step(self, progress: StepProgress) -> None:
        """Move the bar."""
        if not self.get_console.is_terminal:
            return
        if self._bar is None:
            # Not earlier: the features of the head stage have a bar of their own.
            self._bar = self._stack.enter_context(_drawn_bar(self.get_console))
            self._bar.add_task("", total=None, figures="")
        (_, loss), (name, value), *_ = progress.figures.items()
        epoch = f"epoch {progress.epoch}/{progress.epochs}"
        figures = [
            Figure(f"{progress.step}/{progress.steps}", 0),
            Figure(f"loss {loss:.3f}", 1, 10),
            Figure(f"{_short(name)} {value:.1%}", 3, 10),
            Figure(f"{progress.images_per_s:.0f} img/s", 4, 10),
            Figure(self._time_left(progress), 2, 9),
        ]
        self._bar.update(
            self._bar.tasks[0].id,
            description=epoch,
            completed=progress.step,
            total=progress.steps,
            figures=fit_line(figures, self.get_console.width - len(epoch) - _BAR_WIDTH - 2),
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Print the epoch's line, above the bar where there is one."""
        # The task's main figure follows the loss; for training images it may be a simpler one.
        values = result.figures
        _, judged, *_ = [name.removeprefix("val_") for name in values if name.startswith("val_")]
        loss, figure = "", ""
        if result.share is None:  # else nothing was trained
            _, trained, *_ = [n.removeprefix("train_") for n in values if n.startswith("train_")]
            loss = f"loss {values['train_loss']:.4f}"
            figure = f"{_short(trained)} {values[f'train_{trained}']:6.2%}"
        width = len(str(result.epochs))
        epoch = f"epoch {result.epoch:>{width}}/{result.epochs}"
        if result.stage == "head":
            epoch = f"{'head':<{len(epoch)}}"
        elif result.share is not None:
            epoch = f"{f'{result.share:.0%} tuned':<{len(epoch)}}"
        waited = "" if result.data_wait is None else f"{result.data_wait:.1%} wait"
        reduced = result.threads < result.max_threads
        threads = f"{result.threads} of {result.max_threads} threads" if reduced else ""
        figures = [
            Figure(epoch, 0),
            Figure(loss, 3, 11),
            Figure(figure, 5, 11),
            Figure(f"val_loss {values['val_loss']:.4f}", 4, 15),
            Figure(f"val_{_short(judged)} {values[f'val_{judged}']:6.2%}", 1, 15),
            Figure(f"{result.images_per_s:.0f} img/s", 7, 11),
            Figure(waited, 9, 10),
            Figure(f"{result.peak_memory_mb / 1000:.1f} GB", 8, 7),
            Figure(f"{result.seconds:.1f} s", 6, 7),
            Figure(threads, 10),
            Figure("best" if result.is_best else "", 2, 4),
        ]
        line = fit_line(figures, self.get_console.width)
        self.get_console.print(Text(line), soft_wrap=True)

    def _time_left(self, progress: StepProgress) -> str:
        now = time.monotonic()
        finished = progress.epoch - 1 + progress.step / max(progress.steps, 1)  # epochs
        if self._begun is None:
            self._begun = now, finished
        seconds, done = now - self._begun[0], finished - self._begun[1]
        return f"{_duration(seconds / done * (progress.epochs - finished))} left" if done else ""


@contextmanager
def _drawn_bar(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, which everything that is printed meanwhile is put above."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        live_bars.append(console)
        try:
            yield bar
        finally:
            live_bars.remove(console)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _short(name: str) -> str:
    """Shorten the name of a figure to what an epoch's line has room for: "acc", "miou"."""
    return name if len(name) <= 5 else name[:3]
