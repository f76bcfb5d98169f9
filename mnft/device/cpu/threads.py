"""How many threads torch computes with: all cores, or fewer if other processes use them too."""

from __future__ import annotations

import copy
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from mnft.device.cpu.load import OtherWork
from mnft.device.machine import Machine
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
# Images of a trial's step: as many pixels as four images of 224 pixels, and not too many images.
_PIXELS = 4 * 224 * 224
_MOST_IMAGES = 32
# Another number of threads must be this much faster than the one in use to take its place.
_GAIN = 1.1
# How fast training was in recent epochs says more than a trial of a moment: if the number that won
# the trial was this much slower there than another one, the other one is taken.
_RECENT_EPOCHS = 5
_CLEARLY_FASTER = 1.25


class Threads:
    """The number of threads that torch computes with in each epoch.

    An operation ends when its last thread is done: a thread that has to share its core with another
    process makes all others wait. How much a process disturbs depends on what it does, so if the
    cores are in demand a short trial decides.

    Attributes:
        most: number of threads on a quiet machine.
        follows: whether the number follows the load of the machine, or stays the same.
        step: what a trial measures; `build_step` makes it from the model that trains.

    Args:
        most: number of threads on a quiet machine.
        follows: whether the number should follow the load; one thread never does.
    """

    def __init__(self, most: int, *, follows: bool) -> None:
        self.most = most
        self.follows = follows and most > 1
        self.step: Callable[[], None] = lambda: None
        self._epoch = 0
        self._is_quiet = True
        # Images per second beside other work, and the epoch, by number of threads.
        self._rates: dict[int, tuple[float, int]] = {}
        self._work = OtherWork()
        self._next_trial = 0.0
        torch.set_num_threads(most)

    def choose(self, *, begun_with: int = 0) -> int:
        """Set torch's number of threads by what others do now; call this between epochs.

        On a quiet machine this reads a few files of /proc. Nothing changes if the system does not
        say what others do.

        Args:
            begun_with: number of threads that an interrupted epoch began with, which its rest
                keeps; 0 for a new epoch.

        Returns:
            The number of threads.
        """
        if not self.follows:
            return torch.get_num_threads()
        self._epoch += 1
        others = self._work.measure()
        if others is not None:
            self._is_quiet = others < _QUIET
        if begun_with:
            torch.set_num_threads(begun_with)
        elif others is not None and self._is_quiet:
            self._rates.clear()
            torch.set_num_threads(self.most)
        elif others is not None and time.monotonic() >= self._next_trial:
            started = time.monotonic()
            current = torch.get_num_threads()
            left = max(1, self.most - round(others))
            seconds = time_threads({self.most, current, left, max(1, left // 2), 1}, self.step)
            best = min(seconds, key=lambda count: seconds[count])
            chosen = best if seconds[best] * _GAIN < seconds[current] else current
            # What recent epochs reached with other numbers of threads may overrule the trial.
            recent = {
                count: rate
                for count, (rate, epoch) in self._rates.items()
                if self._epoch - epoch <= _RECENT_EPOCHS
            }
            proven = max(recent, key=lambda count: recent[count], default=chosen)
            if recent.get(proven, 0.0) > _CLEARLY_FASTER * recent.get(chosen, float("inf")):
                chosen = proven
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

    def note_rate(self, images_per_s: float) -> None:
        """Note how fast an epoch trained with the number of threads that is set now."""
        if self.follows and not self._is_quiet:
            self._rates[torch.get_num_threads()] = images_per_s, self._epoch

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


def time_threads(candidates: Iterable[int], step: Callable[[], None]) -> dict[int, float]:
    """Measure the seconds that a step takes with each number of threads, in turn.

    torch's number of threads is one of the candidates afterwards.

    Args:
        candidates: numbers of threads to try.
        step: a small training step.
    """

    def time_step(count: int) -> float:
        torch.set_num_threads(count)
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    # oneDNN prepares its operations for each number of threads, so the first time does not count
    # unless it is far too long. Beside three other trainings two threads took ten times as long as
    # one, and further rounds of that would cost seconds.
    first = {count: time_step(count) for count in sorted(candidates)}
    fastest = min(first.values())
    slow = {c: s for c, s in first.items() if s > max(_TRIAL_S / 2, _FAR_SLOWER * fastest)}
    times: dict[int, list[float]] = {count: [] for count in first if count not in slow}
    spent, rounds = sum(first.values()), 0
    while len(times) > 1 and (rounds < 1 or spent < _TRIAL_S):
        for count, own in times.items():
            own.append(time_step(count))
            spent += own[-1]
        rounds += 1
    return slow | {
        count: sum(own) / rounds if own else first[count] for count, own in times.items()
    }


def build_step(
    model: nn.Module, input_size: tuple[int, int, int], machine: Machine
) -> Callable[[], None]:
    """Build a forward and a backward pass of a copy of the model on a few images.

    How much other processes disturb depends on the operations: small ones end, and wait for all
    threads, more often. A single block of convolutions was seen to choose two threads where a small
    model trained five times as fast with one.

    Args:
        model: the model that trains; it is copied at the first call, and not changed.
        input_size: channels, height, width.
        machine: where it trains.
    """
    channels, height, width = input_size
    count = max(2, min(_MOST_IMAGES, _PIXELS // (height * width)))

    @functools.cache
    def prepare() -> tuple[nn.Module, Tensor]:
        # In evaluation mode, so that no random numbers are drawn.
        images = torch.linspace(-1, 1, count * channels * height * width)
        images = images.view(count, channels, height, width)
        return copy.deepcopy(model).eval(), images.contiguous(memory_format=machine.layout)

    def step() -> None:
        copied, images = prepare()
        with autocast(machine.device, machine.train_dtype):
            outputs = copied(images)
        outputs.float().square().mean().backward()
        copied.zero_grad()

    return step
