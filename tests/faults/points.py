"""Numbers the moments of a process at which it can be killed, and kills it at one of them.

A moment lies before each rename, link, removal, new folder and flush, before and in the middle of
each write to a file of the run or the store, in the middle of each weights file, and after each
update of an optimizer. Nothing of it is in the product: an audit hook sees what the interpreter
does, and a few names are replaced in the process that is to die.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUDITED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


class Points:
    """Counts moments; at the one with the number `at` does `act`.

    Args:
        at: number of the moment; 0 is none.
        name: how the moment's name begins; then only such moments count for `at`.
        record: file that gets the name of each moment.
        act: what happens; the default is SIGKILL to this very process.
    """

    def __init__(
        self,
        at: int,
        *,
        name: str = "",
        record: Path | None = None,
        act: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._at = at
        self._count = 0
        self._record = record and open(record, "w", buffering=1)  # noqa: SIM115
        self._act = act or (lambda: os.kill(os.getpid(), signal.SIGKILL))
        self._process = os.getpid()

    def reach(self, name: str, before: Callable[[], None] = lambda: None) -> None:
        """A moment; `before` is done first where it is the last one."""
        if os.getpid() != self._process:
            return
        self._count += name.startswith(self._name)
        if self._record is not None:
            self._record.write(name + "\n")
        if self._count == self._at and name.startswith(self._name):
            self._at = 0
            before()
            self._act()

    def install(self) -> None:
        """Watch this process from now on."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        import mnft.data.store.store
        import mnft.model.bundle

        sys.addaudithook(self._on_audit)
        register_optimizer_step_post_hook(lambda *_: self.reach("optimizer step"))
        fsync = os.fsync

        def flushed(handle: int) -> None:
            self.reach("before a flush to the disk")
            fsync(handle)

        os.fsync = flushed
        opened = Path.open

        def path_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = opened(path, mode, *args, **kwargs)
            writes = set(mode) & set("wax+")
            return _Torn(stream, self, path.name) if writes else stream

        Path.open = path_open  # type: ignore[method-assign,assignment]

        def store_open(path: Path, mode: str) -> Any:
            stream = builtins.open(path, mode)  # noqa: SIM115
            return _Torn(stream, self, path.name) if "a" in mode else stream

        mnft.data.store.store.open = store_open  # type: ignore[attr-defined]
        save = mnft.model.bundle.save_file

        def half(path: Path) -> None:
            with builtins.open(path, "r+b") as stream:
                stream.truncate(path.stat().st_size // 2)

        def save_file(tensors: Any, path: Path, **kwargs: Any) -> None:
            self.reach("before weights are written")
            save(tensors, path, **kwargs)
            self.reach("in the middle of a weights file", lambda: half(path))

        mnft.model.bundle.save_file = save_file

    def _on_audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in AUDITED:
            names = [Path(os.fsdecode(a)).name for a in args if isinstance(a, str | bytes | Path)]
            self.reach(f"before {event} {' '.join(names)}")


class _Torn:
    """A file whose last write before the end is cut in the middle."""

    def __init__(self, stream: Any, points: Points, name: str) -> None:
        self._stream = stream
        self._points = points
        self._name = name

    def write(self, data: Any) -> Any:
        def half() -> None:
            whole = data if isinstance(data, str) else bytes(data)
            self._stream.write(whole[: len(whole) // 2])
            self._stream.flush()

        self._points.reach(f"in the middle of writing {self._name}", half)
        return self._stream.write(data)

    def __enter__(self) -> _Torn:
        self._stream.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._stream.__exit__(*args)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
