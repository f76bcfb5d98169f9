"""How the processes of one training learn that one of them has ended, and why.

When a process leaves, a collective over gloo fails in the others at once, with a message that
explains nothing. Over NCCL it may wait for ever, in a CUDA call that neither Python code nor a
signal interrupts. So a process that ends early first says so in torch's key-value store, and in
each other process a thread looks there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from mnft.device.ranks.distributed import Ranks, broadcast
from mnft.errors import Interrupted, TrainError
from mnft.signals import stop_request

# Messages of gloo and NCCL when the process at the other end has gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "Application timeout caused pair closure",
    "Timed out waiting",
    "ncclRemoteError",
    "NCCL communicator was aborted",
)
_LOOK_EVERY_S = 0.5
# Time that the main thread has to notice by itself (mostly by a lost connection or torchrun's
# signal) before it gets a signal, and then until the process is ended.
_TO_NOTICE_S = 1.0
_TO_END_S = 5.0
# Longest time that the main process waits until the others know of its end.
_TO_READ_S = 3.0
# If the signal is deferred until something is saved, ending may take this long.
_TO_SAVE_S = 60.0
# An error that rank 0 has too is reported there: the others wait this long to see whether it has.
_PRECEDENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended early.

    Attributes:
        rank: rank of the process.
        host: name of its machine.
        exit_code: exit code of the process.
        message: error of the process; empty if it left without a message.
        by: name of the signal that ended it, or None.
    """

    rank: int
    host: str
    exit_code: int
    message: str
    by: str | None = None


class PeerEnded(TrainError):
    """Another process has ended and has said why; this one cannot continue without it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Peers:
    """Tells the processes of a group that one of them has ended; all create it together.

    Args:
        ranks: number of this process among them.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._end: End | None = None
        # The group's own connection is locked while NCCL waits for the others, so this is a second
        # one. The prefix is new each time because torchrun's store outlives restarted processes.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )
        prefix = broadcast(ranks, lambda: f"mnft/{os.getpid()}-{time.time_ns()}")
        self._store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]

    def announce(self, exit_code: int, message: str, *, by: str | None = None) -> None:
        """Tell the others that this process ends, unless another one has ended before.

        The main process may hold the store, so it waits a moment until all others have read it.
        """
        if self._end is not None:
            return
        end = End(self._ranks.rank, socket.gethostname(), exit_code, message, by)
        with suppress(RuntimeError):  # the store is gone, with the process that held it
            self._store.compare_set("end", "", json.dumps(asdict(end)))
            if self.find_end() is not None or not self._ranks.is_main:
                return
            deadline = time.monotonic() + _TO_READ_S
            others = self._ranks.world_size - 1
            while self._store.add("readers", 0) < others and time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY_S / 10)

    def find_end(self) -> End | None:
        """Find the process that ended first; None if none has, or if it is this one."""
        if self._end is not None:
            return self._end
        try:
            if not self._store.check(["end"]):
                return None
            end = End(**json.loads(self._store.get("end")))
            if end.rank != self._ranks.rank:
                self._end = end
                self._store.add("readers", 1)
        except RuntimeError:
            if not self._ranks.is_main:  # the main process may have held the store
                self._end = End(0, "", 1, "")
        return self._end

    def claim(self, text: str) -> bool:
        """Whether this process is to report what several may report; rank 0 goes first."""
        key = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        try:
            deadline = time.monotonic() + (0 if self._ranks.is_main else _PRECEDENCE_S)
            while time.monotonic() < deadline and not self._store.check([key]):
                time.sleep(_LOOK_EVERY_S / 10)
            first: bool = self._store.add(key, 1) == 1
            return first
        except RuntimeError:
            return True

    def explain(self, error: BaseException) -> TrainError | Interrupted | None:
        """Explain an error that comes from the end of another process; None for other errors.

        A signal counts as one if the other process ended with an error: torchrun then sends it.
        """
        text = str(error) if isinstance(error, RuntimeError) else ""
        words = next((words for words in _LOST if words in text), None)
        if words is None and not isinstance(error, dist.DistError | Interrupted):
            return None
        if (end := self.find_end()) is not None:
            told = describe_end(end)
            both = isinstance(error, Interrupted) and isinstance(told, Interrupted)
            return None if both else told
        return None if words is None else _lost(words)


def describe_end(end: End) -> TrainError | Interrupted:
    """Describe the end of a process to the others."""
    if end.by is not None:
        by = f"{end.by} to rank {end.rank}"
        return Interrupted(end.exit_code, f"by {by}", by=by)
    if not end.message:
        return _lost(f"rank {end.rank} is gone")
    if end.host != socket.gethostname():
        return PeerEnded(f"rank {end.rank} on {end.host} ended: {end.message}", end.exit_code)
    message = f"another process ended (rank {end.rank}); its message is above"
    return PeerEnded(message, end.exit_code)


def _lost(reason: str) -> TrainError:
    return TrainError(
        f"another process was lost: {reason}",
        hint="one that is killed without a word has often run out of memory; what started the "
        "processes, such as torchrun, reports which it was",
    )


class Watch(threading.Thread):
    """Ends this process when another one has ended and the main thread does not notice.

    Args:
        peers: source of the ends of other processes.
        end: ends the process; called in this thread with what happened.
    """

    def __init__(self, peers: Peers, end: Callable[[TrainError | Interrupted], None]) -> None:
        super().__init__(name="mnft-peers", daemon=True)
        self._peers = peers
        self._end = end
        self._over = threading.Event()

    def stop(self) -> None:
        """Stop looking, because the main thread has noticed or has finished its work."""
        self._over.set()
        self.join(_LOOK_EVERY_S)  # no thread may be in torch's code when Python ends

    def run(self) -> None:
        """Look for ends until `stop`."""
        while (end := self._peers.find_end()) is None:
            if self._over.wait(_LOOK_EVERY_S):
                return
        if self._over.wait(_TO_NOTICE_S):
            return
        os.kill(os.getpid(), signal.SIGTERM)  # raises `Interrupted` where Python code runs
        last = time.monotonic() + _TO_SAVE_S
        while not self._over.wait(_TO_END_S):
            if not stop_request.pending or time.monotonic() > last:
                self._end(describe_end(end))
                return
