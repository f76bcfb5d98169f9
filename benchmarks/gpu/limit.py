"""How close does training come to the limit of the GPU, and what keeps it from there?

Rows, in images/s, median (lowest to highest) of the rounds, measured in turn:

  graph     forward, loss, backward and a one-group fused AdamW on one batch, as one CUDA graph
  eager     the same without the graph: the limit that the goal speaks of
  update    mnft's own update, on that one batch: its parameter groups, average and counting
  loading   mnft's batches alone
  training  mnft's epoch

Then an epoch that counts the waits for the GPU by line (torch's sync debug mode), and one that
counts what is launched (torch's profiler).

Must hold on a GPU: training is at least 90% of eager; at most 0.2 waits a step. Write down: all
rows, first with a batch of 32, then of 128; waits by line; launches and busy ms a step; the us of
the host for each cudaMemcpyAsync (far above 10: a copy from pageable memory waits).

    python benchmarks/gpu/limit.py CONFIG --set train.batch_size=128
    python benchmarks/gpu/limit.py --tiny --device cpu --steps 2 --rounds 1
"""

from __future__ import annotations

import collections
import itertools
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from acceptance import ROOT, Job, begin, build_parser

_GOAL = 0.9
# An epoch has a few: for its choices, its sums, and its reports, of which there are 4 a second.
_WAITS_A_STEP = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge, and give the exit code."""
    parser = build_parser(__file__, __doc__)
    parser.add_argument("--steps", type=int, default=50, help="updates in a round, at most")
    parser.add_argument("--rounds", type=int, default=5, help="of each row")
    with begin(parser, arguments) as job:
        measure(job)
        return job.finish()


def measure(job: Job) -> None:
    """The rows, the waits and the launches."""
    import parts

    device = parts.find_device(job.device)
    _, training = parts.build(job.config, [*job.args.sets, f"train.device={job.device}"], device)
    loop, batches = training.options.loop, training.train
    fixed = next(iter(batches))
    size, steps = len(fixed.images), min(job.args.steps, len(batches))
    dtype = str(training.machine.train_dtype).removeprefix("torch.")
    job.report.note(f"{dtype}, {steps} batches of {size}, {job.args.rounds} rounds")
    job.report.note(f"store: {training.facts['store']}")

    def train(part: Any) -> None:
        state = replace(training.state, num_updates=0)
        parts.train_one_epoch(
            state,
            training.forward,
            part,
            training.criterion,
            loop,
            on_step=lambda *_: None,
            seed=1,
        )

    def run_epoch() -> None:
        train(Part(itertools.islice(batches, steps), steps, batches))

    rows: dict[str, Callable[[], None]] = {}
    step, optimizer = build_fixed_step(training, fixed)
    started = time.perf_counter()
    step()
    synchronize(device)
    seconds = time.perf_counter() - started
    job.report.note(f"first step, with libraries and autotuning: {seconds:.2f} s")
    for _ in range(min(5, steps)):
        step()
    if job.on_gpu:
        rows["graph"] = repeat(capture(training, fixed, step, optimizer), steps)
    else:
        job.report.skip("the CUDA graph", "no GPU")
    rows["eager"] = repeat(step, steps)
    rows["update"] = lambda: train(Part([fixed] * steps, steps, batches))
    rows["loading"] = lambda: collections.deque(itertools.islice(batches, steps), maxlen=0)
    rows["training"] = run_epoch

    found: dict[str, list[float]] = {name: [] for name in rows}
    rows["training"]()  # tunes for the sizes of the last batch too
    for number in range(job.args.rounds):
        for name, work in rows.items():
            batches.sampler.set_epoch(number + 1)
            synchronize(device)
            started = time.perf_counter()
            work()
            synchronize(device)
            found[name].append(steps * size / (time.perf_counter() - started))
    eager = statistics.median(found["eager"])
    for name, rates in found.items():
        middle = statistics.median(rates)
        job.report.figures[name] = [middle, min(rates), max(rates)]
        job.report.note(
            f"{name:<9}{middle:9,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}) "
            f"{1e3 * size / middle:8.2f} ms a step {middle / eager:7.1%} of eager"
        )
    share = statistics.median(found["training"]) / eager
    job.report.figures["share"] = share
    what = f"training is at least {_GOAL:.0%} of eager"
    if job.on_gpu:
        job.report.check(what, share >= _GOAL, f"{share:.1%}")
    else:
        job.report.check("every row was measured", all(min(r) > 0 for r in found.values()))
        job.report.skip(what, f"{share:.1%} here, but the goal is a GPU's")
    batches.sampler.set_epoch(job.args.rounds + 1)
    count_waits(job, run_epoch, steps)
    batches.sampler.set_epoch(job.args.rounds + 2)
    count_launches(job, run_epoch, steps)


class Part:
    """Some batches in the place of an epoch's."""

    def __init__(self, batches: Any, count: int, whole: Any) -> None:
        self.sampler = whole.sampler
        self.in_device_memory = whole.in_device_memory
        self._batches = batches
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def build_fixed_step(training: Any, batch: Any) -> tuple[Callable[[], None], Any]:
    """One update with nothing but the arithmetic, and its optimizer."""
    import parts
    import torch

    model, loop = training.state.model, training.options.loop
    parts.set_training_mode(model, freeze_batchnorm=loop.freeze_batchnorm)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # capturable: the graph takes this optimizer too.
    machine = training.machine
    on_gpu = machine.device.type == "cuda"
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True, capturable=on_gpu)

    def step() -> None:
        with parts.autocast(machine.device, machine.train_dtype):
            logits = model(batch.images)
        loss = training.criterion(logits, batch.targets, batch.images)
        (loss / len(batch.images)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, optimizer


def capture(
    training: Any, batch: Any, step: Callable[[], None], optimizer: Any
) -> Callable[[], None]:
    """The same update as one CUDA graph."""
    import torch

    dtype = training.machine.train_dtype
    graph = torch.cuda.CUDAGraph()
    # As torch's notes on CUDA graphs have it: warm up on a side stream, and let the gradients be
    # allocated within the graph.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        # The cache of autocast would outlive the capture.
        half = dtype != torch.float32
        with torch.autocast("cuda", dtype, cache_enabled=False) if half else nullcontext():
            logits = training.state.model(batch.images)
        loss = training.criterion(logits, batch.targets, batch.images)
        (loss / len(batch.images)).backward()
        optimizer.step()
    return graph.replay


def repeat(work: Callable[[], None], times: int) -> Callable[[], None]:
    """Call `work` so many times."""

    def run() -> None:
        for _ in range(times):
            work()

    return run


def synchronize(device: Any) -> None:
    """Wait for a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def waits_by_line() -> Iterator[collections.Counter[str]]:
    """Count torch's warnings of a wait for the GPU by the line of mnft that it comes from."""
    found: collections.Counter[str] = collections.Counter()

    def note(message: Any, _category: Any, filename: str, line: int, *_: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            frames = traceback.extract_stack()
            ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT / "mnft")]
            place = (ours[-1].filename, ours[-1].lineno) if ours else (filename, line)
            found[f"{Path(place[0]).name}:{place[1]}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield found


def count_waits(job: Job, run_epoch: Callable[[], None], steps: int) -> None:
    """One epoch in torch's sync debug mode."""
    import torch

    what = f"at most {_WAITS_A_STEP} waits a step"
    if not job.on_gpu:
        job.report.skip(what, "no GPU (tests/training/test_no_waits.py counts them on a fake one)")
        return
    with waits_by_line() as found:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run_epoch()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = found.total() / steps
    job.report.figures["waits_a_step"] = {line: count / steps for line, count in found.items()}
    job.report.check(what, waits <= _WAITS_A_STEP, f"{waits:.2f}")
    for line, count in found.most_common(15):
        job.report.note(f"{count / steps:8.2f} a step  {line}")


def count_launches(job: Job, run_epoch: Callable[[], None], steps: int) -> None:
    """One epoch under torch's profiler: kernels and copies, and the host's calls of CUDA."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if job.on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        run_epoch()
    launches, busy_us = 0, 0.0
    calls: collections.Counter[str] = collections.Counter()
    host_us: collections.Counter[str] = collections.Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launches += 1
            busy_us += event.time_range.elapsed_us()
        elif event.name.startswith("cuda" if job.on_gpu else "aten::"):
            calls[event.name] += 1
            host_us[event.name] += event.time_range.elapsed_us()
    if job.on_gpu:
        job.report.figures |= {"launches": launches / steps, "busy_ms": busy_us / 1e3 / steps}
        job.report.check(
            "launches were counted",
            launches > 0,
            f"{launches / steps:,.0f} a step; the GPU is busy for {busy_us / 1e3 / steps:.2f} ms",
        )
    else:
        job.report.check("operations were counted", calls.total() > 0)
        job.report.skip("launches and busy time", "no GPU; operations of the CPU follow")
    for name, count in calls.most_common(8):
        job.report.note(
            f"{count / steps:8.1f} a step  {name}, {host_us[name] / count:.1f} us of the host each"
        )


if __name__ == "__main__":
    sys.exit(main())
