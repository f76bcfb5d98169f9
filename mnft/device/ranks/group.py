"""Processes that run one command together: which of them reports an error, and how they end."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from mnft import files
from mnft.device.ranks.distributed import Ranks, gather, name_rank, process_group
from mnft.device.ranks.peers import PeerEnded, Peers, Watch
from mnft.errors import Interrupted, TrainError
from mnft.failures import explain
from mnft.reporter import Reporter
from mnft.signals import EXIT_BROKEN_PIPE, leave, stop_request


class Group:
    """The processes of a command, or the only one.

    Attributes:
        ranks: number of this process among them.
        reporter: receives the reason why this process ends.
        describe_stop: adds what the command knows to a stop: what is saved and how to resume.
    """

    def __init__(self, ranks: Ranks, reporter: Reporter, peers: Peers | None = None) -> None:
        self.ranks = ranks
        self.reporter = reporter
        self.describe_stop: Callable[[Interrupted], Interrupted] = lambda stop: stop
        self._peers = peers

    def explain(self, error: BaseException) -> TrainError | Interrupted | None:
        """Explain an error that comes from the end of another process; None for other errors.

        After such an error this process is ending, so it ignores the signal that torchrun sends.
        """
        told = self._peers.explain(error) if self._peers else None
        if told is not None:
            stop_request.ignore_signals()
        return told

    def end(self, error: BaseException) -> NoReturn:
        """Report an error unless another process does, tell the others, and end this process.

        The main process reports a stop, and that it cannot continue without a process that failed.
        An error that several processes have is reported once, by the main process if it is one of
        them. Any other error is reported by the process that has it, with its rank. The exit code
        is that of the error, or of the process whose end is the reason.
        """
        assert self._peers is not None
        ranks = self.ranks
        known = self._peers.explain(error) or explain(error, options={"overrides": ()})
        code = 1 if known is None else known.exit_code
        by = None
        with suppress(OSError):  # stderr is gone too, or the disk is full
            if isinstance(error, BrokenPipeError):
                code = EXIT_BROKEN_PIPE
            elif isinstance(known, PeerEnded | Interrupted):
                by = known.by if isinstance(known, Interrupted) else None
                if ranks.is_main:
                    self.reporter.error(known)
            elif self._peers.claim(repr(known or error)):
                if known is not None:
                    self.reporter.error(name_rank(known, ranks.rank))
                else:
                    self.reporter.note(f"rank {ranks.rank} of {ranks.world_size}:")
                    traceback.print_exception(error)
            if not isinstance(known, PeerEnded):
                _tell_torchrun(error if known is None else known)
        self._peers.announce(code, str(known or repr(error)), by=by)
        leave(code)


@contextmanager
def joined(reporter: Reporter) -> Iterator[Group]:
    """Run a command in all processes that torchrun has started.

    With several processes this block is the last of the process: at its end, or after an error has
    been shown, the process ends without the cleanup of the interpreter. A thread of gloo that still
    waits for the interpreter then would end a finished command with SIGABRT.
    """
    with process_group() as ranks:
        if ranks.world_size == 1:
            yield Group(ranks, reporter)
            return
        stop_request.heed_first_only()
        peers = Peers(ranks)
        group = Group(ranks, reporter, peers)

        def end_stuck(told: TrainError | Interrupted) -> None:
            """End this process from the watching thread while the main thread is stuck."""
            try:
                if ranks.is_main:
                    if isinstance(told, Interrupted):
                        told = group.describe_stop(told)
                    reporter.error(told)
            finally:
                leave(told.exit_code)

        watch = Watch(peers, end_stuck)
        watch.start()
        try:
            yield group
            watch.stop()
            # No process leaves while another may still fail: it may hold the store.
            gather(ranks, None)
        except BaseException as error:  # noqa: BLE001 - each is shown, a bug with its traceback
            stop_request.ignore_signals()
            watch.stop()
            group.end(error)
    leave(0)


def _tell_torchrun(error: BaseException) -> None:
    """Write the reason into the file that torchrun reads for its report, which it prints last."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        words = getattr(error, "message", None) or "".join(traceback.format_exception(error))
        # The layout of torch.distributed.elastic.multiprocessing.errors.
        more = {"py_callstack": words, "timestamp": str(int(time.time()))}
        files.write_json(Path(path), {"message": {"message": words, "extraInfo": more}})
