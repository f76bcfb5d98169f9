"""A process that has imported all there is and forks a new `mnft` process for each request.

Importing torch and timm takes seconds; a fork has them at once. Requests are lines of JSON on
stdin, answers lines on stdout: {"start": {...}} gives the child's number, {"wait": pid} its
return code, negative for a signal, as subprocess does.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def serve() -> None:
    """Answer requests until stdin ends."""
    import torch
    from PIL import Image

    import mnft.cli.app  # noqa: F401

    for name in ("commands.train", "commands.evaluate", "training.fit", "data.batches.stored"):
        importlib.import_module(f"mnft.{name}")
    Image.init()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _start(request["start"]) if "start" in request else _wait(request["wait"])
        print(answer, flush=True)


def _start(spec: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _become(spec)
        finally:
            os._exit(99)  # `_become` does not return
    return pid


def _become(spec: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(spec["folder"])
    os.environ.update(spec["env"])
    for number, name in ((0, os.devnull), (1, spec["out"]), (2, spec["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    code = 1
    try:
        _prepare(spec)
        sys.argv = ["mnft", *spec["args"]]
        from mnft.cli.app import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _prepare(spec: dict[str, Any]) -> None:
    from points import Points

    import mnft.runs.writer

    if (seconds := spec["save_interval"]) is not None:
        mnft.runs.writer.SAVE_INTERVAL_S = seconds
    at, record = spec.get("at", 0), spec.get("record")
    number = getattr(signal, spec.get("signal", "SIGKILL"))

    def act() -> None:
        if code := spec.get("act"):
            exec(code, {})
            return
        for _ in range(spec.get("times", 1)):
            os.kill(os.getpid(), number)

    if at or record:
        path = Path(record) if record else None
        Points(at, name=spec.get("name", ""), record=path, act=act).install()
    for name, value in spec.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if code := spec.get("first"):
        exec(code, {})
    if uid := spec.get("uid"):
        os.setgid(uid)
        os.setuid(uid)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    serve()
