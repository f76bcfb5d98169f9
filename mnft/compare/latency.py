"""How long models take: each in a process of its own, round by round, so that all see one machine.

A process a model, because runtimes share thread pools and memory within one. In each round every
model has one turn, forwards and backwards in alternation: whatever else keeps the machine busy
hurts all alike, and figures of one call of `measure` may be compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnft.compare.process import WorkerProcess
from mnft.errors import ExportError
from mnft.exports.artifact import RECORD
from mnft.host import count_cores

_ROUNDS, _CALLS = 10, 10
# The calls that open a turn find caches cold; TorchScript optimises in its first ones of all.
_WARM_UP, _UNTIMED, _BATCH_WARM_UP = 10, 2, 3
_THROUGHPUT_ROUNDS = 3
_COMPILING = 4  # times the patience


@dataclass(frozen=True, slots=True)
class Variant:
    """A model to measure.

    Attributes:
        label: its name in messages.
        folder: of an export or of a model (`best/`).
        compiled: run a model folder through torch.compile.
    """

    label: str
    folder: Path
    compiled: bool = False

    @property
    def exported(self) -> bool:
        """Whether the folder is that of an export."""
        return (self.folder / RECORD).is_file()


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Attributes:
        threads: to compute with; None for all cores that this process may use.
        rounds: turns of each model.
        calls: timed, in a turn at batch 1.
        batch_size: images at once for the throughput; 1 leaves that measurement out.
        patience_s: for a model to open, or to answer one turn; four times as long to compile.
    """

    threads: int | None = None
    rounds: int = _ROUNDS
    calls: int = _CALLS
    batch_size: int = 32
    patience_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Latency:
    """What a model takes.

    Attributes:
        label: of the variant.
        threads: that it computed with.
        median_ms: of all calls with one image; the model alone, without decoding and resizing.
        p95_ms: 95th percentile of the same.
        rounds_ms: median of each round, (rounds,).
        images_per_s: at `batch_size` images at once.
        batch_size: 1 for files that take one image at a time.
        peak_memory_mb: most RAM in 10^6 bytes of a process that opened this model and ran it at
            batch 1, with Python and the runtime; None where the system does not tell.
    """

    label: str
    threads: int
    median_ms: float
    p95_ms: float
    rounds_ms: tuple[float, ...]
    images_per_s: float
    batch_size: int
    peak_memory_mb: float | None


def measure(
    variants: Sequence[Variant],
    *,
    threads: int | None = None,
    rounds: int = _ROUNDS,
    calls: int = _CALLS,
    batch_size: int = 1,
) -> list[Latency]:
    """Measure models against each other.

    Args:
        variants: in the order of the results.
        threads: None for all cores.
        rounds: turns of each.
        calls: timed, in a turn.
        batch_size: for the throughput; 1 leaves that measurement out.

    Raises:
        ExportError: the first of them that cannot be measured.
    """
    found = []
    for result in measure_each(variants, Plan(threads, rounds, calls, batch_size)):
        if isinstance(result, ExportError):
            raise result
        found.append(result)
    return found


def measure_each(
    variants: Sequence[Variant],
    plan: Plan,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Latency | ExportError]:
    """Measure models against each other, with an error in the place of one that cannot be.

    Args:
        variants: in the order of the results.
        plan: how.
        on_progress: called with the turns done and all.
    """
    threads = plan.threads or count_cores()
    with ExitStack() as stack:
        turns = []
        for variant in variants:
            turns.append(_Turns(variant, _start(variant, threads), plan))
            stack.callback(turns[-1].worker.stop)
        throughput_rounds = min(plan.rounds, _THROUGHPUT_ROUNDS) if plan.batch_size > 1 else 0
        total = len(turns) * (1 + plan.rounds + throughput_rounds)
        steps = [_Turns.open, *[_Turns.time_one] * plan.rounds]
        steps += [_Turns.time_batch] * throughput_rounds
        done = 0
        on_progress(done, total)
        for number, step in enumerate(steps):
            for turn in turns if number % 2 else reversed(turns):
                turn.attempt(step)
                done += 1
                on_progress(done, total)
        return [turn.problem or turn.summarise(threads) for turn in turns]


def compute_ratio(latency: Latency, reference: Latency) -> float:
    """How many times the reference's latency, of models measured together.

    The median over the rounds of the ratio within each: a round's two turns were close in time.
    """
    pairs = zip(latency.rounds_ms, reference.rounds_ms, strict=True)
    return statistics.median(own / other for own, other in pairs)


class _Turns:
    """The turns of one model, and what came of them."""

    def __init__(self, variant: Variant, worker: WorkerProcess, plan: Plan) -> None:
        self.worker = worker
        self.problem: ExportError | None = None
        self._label = variant.label
        self._patience = plan.patience_s * (_COMPILING if variant.compiled else 1)
        self._plan = plan
        self._seconds: list[list[float]] = []
        self._batch_seconds: list[float] = []
        self._dynamic_batch = False
        self._peak_bytes: int | None = None

    def attempt(self, step: Callable[[_Turns], None]) -> None:
        """Take a step, unless one failed before; a failure is kept and ends the process."""
        if self.problem is not None:
            return
        try:
            step(self)
        except ExportError as error:
            self.problem = error
            self.worker.stop()

    def open(self) -> None:
        """Wait until the model is open, and warm it up."""
        answer = self.worker.read_answer(self._patience)
        self._dynamic_batch = bool(answer["dynamic_batch"])
        self._run(batch_size=1, untimed=_WARM_UP, calls=0)

    def time_one(self) -> None:
        """A turn with one image a call."""
        self._seconds.append(self._run(batch_size=1, untimed=_UNTIMED, calls=self._plan.calls))
        if len(self._seconds) == self._plan.rounds:
            # Before the large batches, which need more.
            self._peak_bytes = self.worker.ask({"memory": True}, self._patience)["peak_bytes"]

    def time_batch(self) -> None:
        """A turn with one call of many images, where the file takes them."""
        if self._dynamic_batch:
            untimed = 0 if self._batch_seconds else _BATCH_WARM_UP
            self._batch_seconds += self._run(
                batch_size=self._plan.batch_size, untimed=untimed, calls=1
            )

    def summarise(self, threads: int) -> Latency:
        """What the turns say together."""
        milliseconds = 1000 * np.asarray(self._seconds)
        median_ms = float(np.median(milliseconds))
        images_per_s, batch_size = 1000 / median_ms, 1
        if self._batch_seconds:
            batch_size = self._plan.batch_size
            images_per_s = batch_size / statistics.median(self._batch_seconds)
        return Latency(
            label=self._label,
            threads=threads,
            median_ms=median_ms,
            p95_ms=float(np.percentile(milliseconds, 95)),
            rounds_ms=tuple(np.median(milliseconds, axis=1).tolist()),
            images_per_s=images_per_s,
            batch_size=batch_size,
            peak_memory_mb=None if self._peak_bytes is None else self._peak_bytes / 1e6,
        )

    def _run(self, *, batch_size: int, untimed: int, calls: int) -> list[float]:
        request = {"batch_size": batch_size, "untimed": untimed, "calls": calls}
        return list(self.worker.ask(request, self._patience)["seconds"])


def _start(variant: Variant, threads: int) -> WorkerProcess:
    request = {
        "folder": str(variant.folder.absolute()),
        "exported": variant.exported,
        "compiled": variant.compiled,
        "threads": threads,
    }
    return WorkerProcess(variant.label, request, threads)
