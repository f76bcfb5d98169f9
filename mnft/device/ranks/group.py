"""Several processes that run one command together: which of them speaks, and how they end."""

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
    """The processes of a command; one alone is the simple case.

    Attributes:
        ranks: which of them this is.
        reporter: told why this process ends.
        describe_stop: adds to a stop what the command knows of it: what is saved, how to go on.
    """

    def __init__(self, ranks: Ranks, reporter: Reporter, peers: Peers | None = None) -> None:
        self.ranks = ranks
        self.reporter = reporter
        self.describe_stop: Callable[[Interrupted], Interrupted] = lambda stop: stop
        self._peers = peers

    def explain(self, error: BaseException) -> TrainError | Interrupted | None:
        """The end of another process where an error comes from that; else None.

        Where it does, this process is ending and ignores signals: torchrun sends it one.
        """
        told = self._peers.explain(error) if self._peers else None
        if told is not None:
            stop_request.ignore_signals()
        return told

    def end(self, error: BaseException) -> NoReturn:
        """Say what is the matter, unless another process does, tell the others, and end this one.

        The main process speaks for all that were stopped, or cannot go on without the one that
        has failed. An error that several have is said once, by the main process if it is one of
        them; any other by the process that has it, named. The exit code is that of the error, or
        of the process whose end is the reason.
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

    With several, an error does not leave this block: it is shown, and the process ends.
    """
    with process_group() as ranks:
        if ranks.world_size == 1:
            yield Group(ranks, reporter)
            return
        stop_request.heed_first_only()
        peers = Peers(ranks)
        group = Group(ranks, reporter, peers)
        watch = Watch(peers, lambda told: _end_where_main_thread_is_stuck(group, told))
        watch.start()
        try:
            yield group
            watch.stop()
            # No process leaves, perhaps with the store, while another one may still fail.
            gather(ranks, None)
        except BaseException as error:  # noqa: BLE001 - each is shown, a bug with its traceback
            stop_request.ignore_signals()
            watch.stop()
            group.end(error)


def _tell_torchrun(error: BaseException) -> None:
    """Write the reason to where torchrun takes it from for its report, which people see last."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        words = getattr(error, "message", None) or "".join(traceback.format_exception(error))
        # The layout of torch.distributed.elastic.multiprocessing.errors.
        more = {"py_callstack": words, "timestamp": str(int(time.time()))}
        files.write_json(Path(path), {"message": {"message": words, "extraInfo": more}})


def _end_where_main_thread_is_stuck(group: Group, told: TrainError | Interrupted) -> None:
    try:
        if group.ranks.is_main:
            if isinstance(told, Interrupted):
                told = group.describe_stop(told)
            group.reporter.error(told)
    finally:
        leave(told.exit_code)
