"""How much of this machine's cores other processes use, as Linux accounts for it in /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Linux accounts for the cores' time in ticks, mostly of 10 ms: less says nothing.
_SHORTEST_S = 0.3
# Fields of a line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. Time that
# the host of a virtual machine took away (steal) is other processes' work too.
_BUSY = (0, 1, 2, 5, 6, 7)


class OtherWork:
    """Measures from call to call what the other processes took of the cores of this one.

    The processes that load images are children of this one, and count as its own work.

    Args:
        proc: where Linux tells it; without it nothing is known.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = self._read()

    def measure(self) -> float | None:
        """Cores that others kept busy on average since the last call: 1.0 is one whole core.

        Returns:
            None where the system does not say, or where the last call is only just over; the next
            call then measures from the same beginning.
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
        """The time, and the seconds that the cores have worked for others since the start."""
        try:
            cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            ticks = os.sysconf("SC_CLK_TCK")
            lines = (self._proc / "stat").read_text(encoding="ascii").splitlines()
            fields = [line.split() for line in lines]
            busy = sum(int(f[1 + place]) for f in fields if f[0] in cores for place in _BUSY)
            times = os.times()
            # Time of children that are over, and then of those that live.
            own = times.user + times.system + times.children_user + times.children_system
            children = sum(self._ticks_of(pid) for pid in self._find_children())
        except (AttributeError, OSError, ValueError, IndexError):  # macOS, Windows; no /proc
            return None
        return time.monotonic(), (busy - children) / ticks - own

    def _find_children(self) -> list[str]:
        try:
            tasks = (self._proc / "self" / "task").iterdir()
            return [pid for task in tasks for pid in (task / "children").read_text().split()]
        except OSError:  # a thread that has just ended, or a kernel without these files
            return []

    def _ticks_of(self, pid: str) -> int:
        try:
            text = (self._proc / pid / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended
            return 0
        # The name, in brackets, may hold spaces; utime and stime are fields 14 and 15.
        user, system = text.rpartition(")")[2].split()[11:13]
        return int(user) + int(system)
