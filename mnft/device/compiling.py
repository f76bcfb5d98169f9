"""torch.compile for training: whether it pays and works here, and the model as it is if not."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mnft.device.ranks.distributed import Ranks, gather
from mnft.failures import is_out_of_memory

_log = logging.getLogger(__name__)
# With fewer updates on a GPU, compiling takes longer than it saves: minutes.
_UPDATES_WORTH_COMPILING = 10_000
# How compiling fails: torch's own errors are RuntimeErrors; the others come from the programs that
# it starts, from their folders and from importing Triton.
_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)


def choose_compile(
    wanted: bool | Literal["auto"], device: torch.device, *, updates: int, ranks: Ranks
) -> tuple[bool, str]:
    """Decide whether to compile the model.

    If compiling pays or is asked for, but one of the processes cannot compile anything, a warning
    says so and the model is not compiled.

    Args:
        wanted: value of `train.compile`. `auto` compiles for long trainings on a GPU; on the CPU
            compiling costs a minute and training is no faster.
        device: device that the model trains on.
        updates: number of updates of the whole training.
        ranks: processes that train together; all compile or none.

    Returns:
        Whether to compile, and the reason for people.
    """
    if wanted is False:
        return False, "not asked for"
    if wanted == "auto" and device.type != "cuda":
        return False, f"training on {device.type} gains nothing from compiling"
    if wanted == "auto" and updates < _UPDATES_WORTH_COMPILING:
        return False, f"{updates:,} updates are too few to pay for compiling"
    problems = gather(ranks, _find_missing_tool(device) or _try_to_compile(device))
    problem = next((found for found in problems if found), None)
    if problem is None:
        return True, "asked for" if wanted is True else f"{updates:,} updates pay for compiling"
    if ranks.is_main:
        _log.warning("training continues without torch.compile: %s", problem)
    return False, f"it cannot be compiled: {problem}"


class Compiled(nn.Module):
    """Runs a model through torch.compile, and without it once compiling has failed.

    Each shape of images gets its own graph. (With dynamic shapes, the graph compiled for the
    smaller last batch would serve all later batches, and is slower.)

    Args:
        model: model that takes images, or its distributed wrapper.
        quiet: whether not to warn, because another process does.
    """

    def __init__(self, model: nn.Module, *, quiet: bool = False) -> None:
        super().__init__()
        self._orig_mod = model  # the name that torch's own wrapper has for it
        self._compiled: nn.Module | None = cast(nn.Module, torch.compile(model, dynamic=False))
        self._proven: set[torch.Size] = set()
        self._quiet = quiet

    def forward(self, images: Tensor) -> Any:
        """Run the model, by compiled code if there is any."""
        if self._compiled is None:
            return self._orig_mod(images)
        # A graph that has worked before is not the cause of an error.
        if images.shape in self._proven:
            return self._compiled(images)
        try:
            with _compiling_backward_too():
                out = self._compiled(images)
        except _ERRORS as error:
            if is_out_of_memory(error):
                raise
            reason = _summarize(error)
            if not self._quiet:
                _log.warning("torch.compile failed, training continues without it: %s", reason)
            self._compiled = None
            return self._orig_mod(images)
        self._proven.add(images.shape)
        return out


def _find_missing_tool(device: torch.device) -> str | None:
    """Name what torch's compiler needs and this machine lacks; its own errors are less clear."""
    if sys.platform == "win32":  # Triton brings its own there
        return None
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not _is_installed(os.environ.get("CC"), "gcc", "clang"):
            return "Triton finds no C compiler (gcc or clang)"
        scheme = sysconfig.get_default_scheme()
        if scheme == "posix_local":  # Debian's, which has the headers elsewhere; as in Triton
            scheme = "posix_prefix"
        header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
        if not header.is_file():
            return f"Triton needs {header}, which Python's development package (python3-dev) has"
    if device.type == "cpu":
        name = "clang++" if sys.platform == "darwin" else "g++"
        if not _is_installed(os.environ.get("CXX"), name):
            return f"no C++ compiler ({name}) is installed"
    return None


def _is_installed(written: str | None, *usual: str) -> bool:
    """Whether a compiler is installed: the one an environment variable names, or a usual one."""
    names = shlex.split(written)[:1] if written else usual
    return any(shutil.which(name) for name in names)


def _try_to_compile(device: torch.device) -> str | None:
    """Compile a tiny function for a device; give the reason if that fails, otherwise None."""

    def compute(values: Tensor) -> Tensor:
        return (values.sin() + 1).square().sum()

    values = torch.ones(64, device=device, requires_grad=True)
    try:
        with _compiling_backward_too():
            loss = torch.compile(compute, dynamic=False)(values)
        loss.backward()  # type: ignore[no-untyped-call]
    except _ERRORS as error:
        return _summarize(error)
    return None


def _compiling_backward_too() -> AbstractContextManager[None]:
    """Let the backward pass be compiled with the forward pass.

    By default torch compiles it when it is called, when it is too late to fall back after an error.
    """
    from torch._functorch import config  # imported by torch.compile in any case

    if not hasattr(config, "force_non_lazy_backward_lowering"):
        return nullcontext()
    patch: AbstractContextManager[None] = config.patch(force_non_lazy_backward_lowering=True)
    return patch


def _summarize(error: BaseException) -> str:
    """Reduce an error to one line: torch wraps what the compiler said in pages of advice."""
    cause = getattr(error, "inner_exception", error)
    line = next((line for line in str(cause).splitlines() if line), "")
    return f"{type(cause).__name__}: {line}"
