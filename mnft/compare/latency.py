"""How long models take: each in its own process, round by round, so that all see one machine.

There is a process for each model because runtimes share thread pools and memory within one. In
each round every model has one turn, in an order that alternates between forwards and backwards:
whatever else keeps the machine busy hurts all alike, so that figures of one call may be compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mnft.compare.process import WorkerProcess
from mnft.compare.variants import Variant
from mnft.errors import ExportError
from mnft.host import count_cores
from mnft.reporter import SILENT, Reporter

# The first calls of a turn find caches cold; TorchScript optimises in its very first calls.
_WARM_UP, _UNTIMED, _BATCH_WARM_UP = 10, 2, 3
_THROUGHPUT_ROUNDS = 3
_COMPILE_FACTOR = 4  # of the timeout


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Attributes:
        threads: the threads to compute with; None takes all cores that this process may use.
        rounds: the turns of each model.
        calls: the timed calls in a turn at batch 1.
        batch_size: images at once for the throughput; 1 leaves that measurement out.
        timeout_s: the time for a model to open, or to answer one turn; four times as long for a
            model that is compiled.
    """

    threads: int | None = None
    rounds: int = 10
    calls: int = 10
    batch_size: int = 32
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a model takes.

    Attributes:
        label: the variant's label.
        threads: the threads that it computed with.
        median_ms: over all calls with one image; only the model, without decoding and resizing.
        p95_ms: the 95th percentile of the same calls.
        rounds_ms: the median of each round, (rounds,).
        images_per_s: images per second with `batch_size` images at once.
        batch_size: 1 for files that take one image at a time.
        peak_memory_mb: the most RAM, in 10^6 bytes, of a process that opened this model and ran it
            at batch 1, with Python and the runtime; None where the system does not tell.
    """

    label: str
    threads: int
    median_ms: float
    p95_ms: float
    rounds_ms: tuple[float, ...]
    images_per_s: float
    batch_size: int
    peak_memory_mb: float | None


def measure(variants: Sequence[Variant], plan: Plan) -> list[Latency]:
    """Measure models against each other.

    Args:
        variants: the models, in the order of the results.
        plan: how to measure.

    Raises:
        ExportError: the first model that cannot be measured.
    """
    latencies = []
    for result in measure_each(variants, plan):
        if isinstance(result, ExportError):
            raise result
        latencies.append(result)
    return latencies


def measure_each(
    variants: Sequence[Variant], plan: Plan, reporter: Reporter = SILENT
) -> list[Latency | ExportError]:
    """Measure models against each other, with an error in the place of one that cannot be.

    Args:
        variants: the models, in the order of the results.
        plan: how to measure.
        reporter: receives the number of turns done.
    """
    threads = plan.threads or count_cores()
    throughput_rounds = min(plan.rounds, _THROUGHPUT_ROUNDS) if plan.batch_size > 1 else 0
    num_turns = 1 + plan.rounds + throughput_rounds
    with ExitStack() as stack:
        models = []
        for variant in variants:
            models.append(_MeasuredModel(variant, plan, threads))
            stack.callback(models[-1].stop)
        total = len(models) * num_turns
        advance = stack.enter_context(reporter.count("measuring latency", total))
        for turn in range(num_turns):
            for model in models if turn % 2 else reversed(models):
                model.take_turn(turn)
                advance(1)
        return [model.summarise() for model in models]


def compute_ratio(latency: Latency, reference: Latency) -> float:
    """How many times the reference's latency, for models measured together.

    The median over the rounds of the ratio within each: a round's two turns were close in time.
    """
    pairs = zip(latency.rounds_ms, reference.rounds_ms, strict=True)
    return statistics.median(own / other for own, other in pairs)


class _MeasuredModel:
    """The process of one model, and what its turns have shown so far."""

    def __init__(self, variant: Variant, plan: Plan, threads: int) -> None:
        self._label = variant.label
        self._plan = plan
        self._threads = threads
        self._timeout_s = plan.timeout_s * (_COMPILE_FACTOR if variant.compiled else 1)
        self._problem: ExportError | None = None
        self._seconds: list[list[float]] = []
        self._batch_seconds: list[float] = []
        self._dynamic_batch = False
        self._peak_bytes: int | None = None
        request = {
            "folder": str(variant.folder.absolute()),
            "exported": variant.exported,
            "compiled": variant.compiled,
            "threads": threads,
        }
        self._worker = WorkerProcess(variant.label, request, threads)
        self.stop = self._worker.stop

    def take_turn(self, turn: int) -> None:
        """Open the model in turn 0, then time single images, then batches.

        A failure is kept; it ends the process and all further turns.
        """
        if self._problem is not None:
            return
        try:
            if turn == 0:
                answer = self._worker.read_answer(self._timeout_s)
                self._dynamic_batch = bool(answer["dynamic_batch"])
                self._run(batch_size=1, untimed=_WARM_UP, calls=0)
            elif turn <= self._plan.rounds:
                calls = self._plan.calls
                self._seconds.append(self._run(batch_size=1, untimed=_UNTIMED, calls=calls))
                if turn == self._plan.rounds:
                    # Before the batches, which need more memory.
                    answer = self._worker.ask({"memory": True}, self._timeout_s)
                    self._peak_bytes = answer["peak_bytes"]
            elif self._dynamic_batch:
                untimed = 0 if self._batch_seconds else _BATCH_WARM_UP
                batch_size = self._plan.batch_size
                self._batch_seconds += self._run(batch_size=batch_size, untimed=untimed, calls=1)
        except ExportError as error:
            self._problem = error
            self.stop()

    def summarise(self) -> Latency | ExportError:
        """What the turns say together, or what failed."""
        if self._problem is not None:
            return self._problem
        milliseconds = 1000 * np.asarray(self._seconds)
        median_ms = float(np.median(milliseconds))
        images_per_s, batch_size = 1000 / median_ms, 1
        if self._batch_seconds:
            batch_size = self._plan.batch_size
            images_per_s = batch_size / statistics.median(self._batch_seconds)
        return Latency(
            label=self._label,
            threads=self._threads,
            median_ms=median_ms,
            p95_ms=float(np.percentile(milliseconds, 95)),
            rounds_ms=tuple(np.median(milliseconds, axis=1).tolist()),
            images_per_s=images_per_s,
            batch_size=batch_size,
            peak_memory_mb=None if self._peak_bytes is None else self._peak_bytes / 1e6,
        )

    def _run(self, *, batch_size: int, untimed: int, calls: int) -> list[float]:
        request = {"batch_size": batch_size, "untimed": untimed, "calls": calls}
        return list(self._worker.ask(request, self._timeout_s)["seconds"])
