"""How many threads torch computes with: all cores, or fewer if other processes use them too."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from mnft.device.cpu.load import OtherWork
from mnft.device.ranks.distributed import Ranks
from mnft.device.select import autocast
from mnft.host import count_cores

_log = logging.getLogger(__name__)
# The machine counts as quiet if other processes keep fewer cores busy than this.
_QUIET = 0.2
# A trial of the candidates takes about this long, and all trials at most this fraction of the time.
_TRIAL_S = 0.4
_TRIAL_FRACTION = 0.05
# A number of threads that takes this many times as long as the fastest leaves the trial.
_FAR_SLOWER = 4
# Another number of threads must be this much faster than the one in use to take its place.
_GAIN = 1.1


class Threads:
    """The number of threads that torch computes with in each epoch.

    An operation ends when its last thread is done: a thread that has to share its core with another
    process makes all others wait. How much a process disturbs depends on what it does, so if the
    cores are in demand a short trial decides.

    Attributes:
        most: number of threads on a quiet machine.
        follows: whether the number follows the load of the machine, or stays the same.

    Args:
        most: number of threads on a quiet machine.
        follows: whether the number should follow the load; one thread never does.
    """

    def __init__(self, most: int, *, follows: bool) -> None:
        self.most = most
        self.follows = follows and most > 1
        self._work = OtherWork()
        self._next_trial = 0.0
        torch.set_num_threads(most)

    def choose(self, dtype: torch.dtype, *, begun_with: int = 0) -> int:
        """Set torch's number of threads by what others do now; call this between epochs.

        On a quiet machine this reads a few files of /proc. Nothing changes if the system does not
        say what others do.

        Args:
            dtype: precision of the training, for the trial.
            begun_with: number of threads that an interrupted epoch began with, which its rest
                keeps; 0 for a new epoch.

        Returns:
            The number of threads.
        """
        if not self.follows:
            return torch.get_num_threads()
        others = self._work.measure()
        if begun_with:
            torch.set_num_threads(begun_with)
        elif others is not None and others < _QUIET:
            torch.set_num_threads(self.most)
        elif others is not None and time.monotonic() >= self._next_trial:
            started = time.monotonic()
            current = torch.get_num_threads()
            left = max(1, self.most - round(others))
            seconds = time_threads({self.most, current, left, max(1, left // 2), 1}, dtype)
            best = min(seconds, key=lambda count: seconds[count])
            chosen = best if seconds[best] * _GAIN < seconds[current] else current
            _log.info(
                "other processes keep %.1f cores busy: %d of %d threads (%s)",
                others,
                chosen,
                self.most,
                ", ".join(f"{count}: {1e3 * seconds[count]:.0f} ms" for count in sorted(seconds)),
            )
            torch.set_num_threads(chosen)
            now = time.monotonic()
            self._next_trial = now + (now - started) / _TRIAL_FRACTION
        return torch.get_num_threads()

    def release(self) -> None:
        """Use all threads again, for an evaluation or another training that follows."""
        if self.follows:
            torch.set_num_threads(self.most)


def build_threads(
    wanted: int | Literal["auto"],
    *,
    device: torch.device,
    ranks: Ranks,
    fixed: bool = False,
) -> Threads:
    """Build the threads for `train.threads`.

    `auto` follows the load if one process trains on the CPU and OMP_NUM_THREADS is not set. Several
    processes share the cores of their machine evenly.

    Args:
        wanted: value of `train.threads`.
        device: device that the model trains on.
        ranks: processes that train together.
        fixed: whether the number must not change within a run.
    """
    if wanted != "auto":
        return Threads(wanted, follows=False)
    chosen = "OMP_NUM_THREADS" in os.environ
    if ranks.world_size > 1:
        # torchrun sets one thread a process if the user sets none, however many cores there are.
        by_torchrun = (
            "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
        )
        if not chosen or by_torchrun:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))
            return Threads(max(1, count_cores() // local), follows=False)
    follows = not (fixed or chosen or ranks.world_size > 1) and device.type == "cpu"
    return Threads(torch.get_num_threads(), follows=follows)


def time_threads(candidates: Iterable[int], dtype: torch.dtype) -> dict[int, float]:
    """Measure the seconds that a small training step takes with each number of threads, in turn.

    torch's number of threads is one of the candidates afterwards.

    Args:
        candidates: numbers of threads to try.
        dtype: precision of the forward pass.
    """
    piece = _build_piece(dtype)

    def time_piece(count: int) -> float:
        torch.set_num_threads(count)
        started = time.perf_counter()
        piece()
        return time.perf_counter() - started

    # oneDNN prepares its operations for each number of threads, so the first time does not count
    # unless it is far too long. Beside three other trainings two threads took ten times as long as
    # one, and further rounds of that would cost seconds.
    first = {count: time_piece(count) for count in sorted(candidates)}
    fastest = min(first.values())
    slow = {c: s for c, s in first.items() if s > max(_TRIAL_S / 2, _FAR_SLOWER * fastest)}
    times: dict[int, list[float]] = {count: [] for count in first if count not in slow}
    spent, rounds = sum(first.values()), 0
    while len(times) > 1 and (rounds < 1 or spent < _TRIAL_S):
        for count, own in times.items():
            own.append(time_piece(count))
            spent += own[-1]
        rounds += 1
    return slow | {
        count: sum(own) / rounds if own else first[count] for count, own in times.items()
    }


def _build_piece(dtype: torch.dtype) -> Callable[[], None]:
    """Build a forward and a backward pass of a MobileNet block on a few images."""
    with torch.random.fork_rng(devices=[]):  # the weights are drawn
        block = nn.Sequential(
            nn.Conv2d(32, 192, 1, bias=False),
            nn.BatchNorm2d(192),
            nn.ReLU6(),
            nn.Conv2d(192, 192, 3, padding=1, groups=192, bias=False),
            nn.BatchNorm2d(192),
            nn.ReLU6(),
            nn.Conv2d(192, 32, 1, bias=False),
        )
    block = block.eval().to(memory_format=torch.channels_last)
    images = torch.linspace(-1, 1, 4 * 32 * 56 * 56).view(4, 32, 56, 56)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()

    def run() -> None:
        with autocast(torch.device("cpu"), dtype):
            outputs = block(images)
        outputs.float().square().mean().backward()
        block.zero_grad()
        images.grad = None

    return run
