"""Measure how many of the machine's cores other processes use, from Linux's /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Linux counts the cores' time in ticks, mostly of 10 ms, so a shorter time says nothing.
_SHORTEST_S = 0.3
# The busy ones of the fields of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
# Time that the host of a virtual machine took away (steal) counts as work of other processes.
_BUSY = (0, 1, 2, 5, 6, 7)


class OtherWork:
    """Measures how much other processes used the cores of this one between two calls.

    The processes that load images are children of this one and count as its own work.

    Args:
        proc: Linux's /proc; if it is missing, nothing can be measured.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = self._read()

    def measure(self) -> float | None:
        """Measure how many cores others kept busy on average since the last call.

        Returns:
            1.0 for one whole core. None if the system does not say, or if the last call was less
            than 0.3 s ago; the next call then measures since that same last call.
        """
        now = self._read()
        if now is None or self._last is None:
            return None
        seconds = now[0] - self._last[0]
        if seconds < _SHORTEST_S:
            return None
        others = (now[1] - self._last[1]) / seconds
        self._last = now
        return max(0.0, others)

    def _read(self) -> tuple[float, float] | None:
        """Read the time, and the seconds that the cores have worked for others since the start."""
        try:
            cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            ticks = os.sysconf("SC_CLK_TCK")
            lines = (self._proc / "stat").read_text(encoding="ascii").splitlines()
            fields = [line.split() for line in lines]
            busy = sum(int(f[1 + place]) for f in fields if f[0] in cores for place in _BUSY)
            times = os.times()
            # `times` has the children that have ended; /proc has the living ones.
            own = times.user + times.system + times.children_user + times.children_system
            try:
                tasks = (self._proc / "self" / "task").iterdir()
                pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
            except OSError:  # a thread that has just ended, or a kernel without these files
                pids = []
            children = sum(self._ticks_of(pid) for pid in pids)
        except (AttributeError, OSError, ValueError, IndexError):  # macOS, Windows; no /proc
            return None
        return time.monotonic(), (busy - children) / ticks - own

    def _ticks_of(self, pid: str) -> int:
        try:
            text = (self._proc / pid / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended
            return 0
        # The name, in brackets, may hold spaces; utime and stime are fields 14 and 15.
        user, system = text.rpartition(")")[2].split()[11:13]
        return int(user) + int(system)
