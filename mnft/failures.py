"""What errors of the system and of torch mean to a person.

They are told apart by type and by their words, so that nobody has to import torch to explain one.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from mnft.errors import DataError, Interrupted, MnftError, first_line

# What the user can fix; any other OSError is a bug and keeps its traceback.
_DISK_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
# What torch says where it raises no OutOfMemoryError. "out of memory" is said by CUDA itself (the
# context, a graph or a library found the GPU full), its driver, Triton, NCCL and Apple's GPUs; then
# come CUDA's libraries, which cannot allocate their handle or workspace, the CPU (Linux, Windows,
# oneDNN), and Python when a thread's stack has no room.
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_..., _HOST_...
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",
    "std::bad_alloc",
    "can't start new thread",
)
_SHARED_MEMORY = ("shared memory", "unable to write to file </torch", "unable to mmap", "Bus error")


def explain(
    error: BaseException, *, options: Mapping[str, Any] | None = None
) -> MnftError | Interrupted | None:
    """Turn an error into one for people; None for a bug, where a traceback says more.

    Args:
        error: any error.
        options: the parameters of the command that failed, which tell what the user can change.
    """
    options = options or {}
    if isinstance(error, MnftError | Interrupted):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(130, "by Ctrl-C")
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        where = error.filename2 or error.filename or "the disk"
        may_help = "output" in options and error.errno in _NOT_WRITABLE
        hint = "name another place to write to: --output PATH" if may_help else None
        return MnftError(f"{where}: {error.strerror}", hint=hint)
    if is_out_of_memory(error):
        reason = first_line(error, default="")
        hint = None
        if "batch_size" in options:
            hint = "smaller values of --batch-size and --workers need less"
        elif "overrides" in options:
            hint = "lower train.batch_size, eval.batch_size, data.img_size or data.workers"
        return MnftError(f"this machine has too little memory{reason and f': {reason}'}", hint=hint)
    return explain_lost_worker(error) if isinstance(error, RuntimeError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def explain_lost_worker(error: BaseException) -> DataError | None:
    """Explain what torch raises when a loading process is lost; None for other errors.

    Torch raises some of it from a signal handler, wherever the main process is at that moment.
    """
    text = f"{error} {error.__cause__ or ''}"
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
    if is_full or any(words in text for words in _SHARED_MEMORY):
        return DataError(
            "a process that loads images found no room in /dev/shm",
            hint="enlarge it (docker run --shm-size=2g), or use fewer loading processes "
            "(data.workers, or --workers); 0 needs none",
        )
    if isinstance(error, EOFError | ConnectionError) or (
        isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
    ):
        return DataError(
            "a process that loads images was killed, often because memory ran out",
            hint="use fewer of them: --set data.workers=N (resume a training with `mnft train "
            "--resume RUN`), or --workers N",
        )
    return None
