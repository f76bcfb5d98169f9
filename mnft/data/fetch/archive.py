"""Published archives: download with resume, check by SHA-256, unpack without leaving the folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mnft.errors import DataError

Progress = Callable[[str, int, int], None]
"""Told (what is being done, bytes or items done, their total or 0 where it is not known)."""

# food101, the largest of the catalogue, has about 101,200 members and 5 GB
MAX_MEMBERS = 250_000
MAX_UNPACKED_BYTES = 16 * 2**30
# Images hardly shrink in an archive; gzip makes zeros a thousand times smaller.
MAX_RATIO, _MAY_SHRINK_BYTES = 100, 64 * 2**20
TIMEOUT_S = 30.0
_ATTEMPTS = 5
_CHUNK_BYTES = 256 * 1024
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
_DISK_HINTS = {
    errno.ENOSPC: "free some space, or set MNFT_CACHE and the destination to a larger disk",
    errno.EDQUOT: "your disk quota is used up; set MNFT_CACHE and the destination elsewhere",
    errno.EACCES: "give a destination, and MNFT_CACHE, where you may write",
    errno.EROFS: "give a destination, and MNFT_CACHE, on a disk that can be written",
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One published file; `sha256` is lower-case hexadecimal, `num_bytes` its exact size."""

    url: str
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


class _TransferError(Exception):
    """The connection failed; what came before it is kept."""


def downloads_folder() -> Path:
    """Where downloads are kept: in $MNFT_CACHE, else $XDG_CACHE_HOME/mnft, else ~/.cache/mnft."""
    if cache := os.environ.get("MNFT_CACHE"):
        return Path(cache).expanduser() / "downloads"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mnft" / "downloads"


def download(
    remote: RemoteFile,
    folder: Path,
    *,
    hint: str,
    on_progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Bring a file into `folder`, or find it there, and check it.

    What arrived before an interruption stays as `<file>.part` and is continued next time.

    Args:
        remote: what to bring; http or https only.
        folder: made where missing.
        hint: what to do when the file cannot be had from the network.
        on_progress: told the bytes done.
        timeout_s: how long the server may be silent.

    Raises:
        DataError: no network, no such file, a connection that closes early, or a file whose
            checksum is wrong; the wrong file is removed.
        OSError: the disk is full or cannot be written; see `disk_errors`.
    """
    report = on_progress or _silent
    target = folder / remote.file_name
    if target.exists():
        _verify_or_remove(target, remote, report)
        return target
    part = folder / f"{remote.file_name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    _complete(part, remote, hint=hint, report=report, timeout_s=timeout_s)
    _verify_or_remove(part, remote, report)
    part.replace(target)
    return target


def verify(path: Path, remote: RemoteFile, *, on_progress: Progress | None = None) -> None:
    """Check that `path` is the published file, by its SHA-256.

    Raises:
        DataError: it is not; the message names the expected and the found checksum.
    """
    report, digest, done = on_progress or _silent, hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(f"checking {remote.file_name}", done, remote.num_bytes)
    if digest.hexdigest() != remote.sha256:
        raise DataError(
            f"{path}: not the published {remote.file_name}: expected SHA-256 {remote.sha256} "
            f"({remote.num_bytes:,} bytes), found {digest.hexdigest()} ({done:,} bytes)",
            hint=f"download it again from {remote.url}",
        )


def extract(
    archive: Path,
    folder: Path,
    *,
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_UNPACKED_BYTES,
    on_progress: Progress | None = None,
) -> None:
    """Unpack a tar archive, plain or gzip, whatever its ending, into a working folder.

    Args:
        archive: the file.
        folder: made where missing; on any failure it is removed with all it holds.
        max_members: more files and folders than this are refused.
        max_bytes: more unpacked bytes than this are refused; so are more than 100 times the
            archive's, from 64 MiB on.
        on_progress: told the bytes of the archive that were read.

    Raises:
        DataError: not a tar archive, damaged, too large, or with a member that is a device or
            would land, or links, outside `folder`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "this Python cannot unpack archives safely", hint="use Python 3.11.4 or newer"
        )
    report = on_progress or _silent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            ratio_limit = max(_MAY_SHRINK_BYTES, MAX_RATIO * archive.stat().st_size)
            limit = min(max_bytes, ratio_limit)
            for member in _within_limits(tar, archive, max_members, limit):
                _extract_member(tar, member, archive=archive, folder=folder)
                report(f"unpacking {archive.name}", file.tell(), archive.stat().st_size)
    except _DAMAGED as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{archive}: not a tar archive, or damaged: {_brief(error)}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn a failure of the disk (full, read-only, no permission) into a DataError."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise DataError(
            f"{doing}: {error.strerror or error}{where}", hint=_DISK_HINTS.get(error.errno or 0)
        ) from error


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def _verify_or_remove(path: Path, remote: RemoteFile, report: Progress) -> None:
    try:
        verify(path, remote, on_progress=report)
    except DataError as error:
        path.unlink()
        raise DataError(
            error.message,
            hint=f"the wrong file was removed; run the command again to fetch {remote.url} anew",
        ) from error


def _complete(
    part: Path, remote: RemoteFile, *, hint: str, report: Progress, timeout_s: float
) -> None:
    """Continue `part` until it is whole; go on after a broken connection as long as that helps."""
    if _size(part) > remote.num_bytes:
        part.unlink()
    reason = ""
    for _ in range(_ATTEMPTS):
        before = _size(part)
        if before == remote.num_bytes:
            return
        try:
            _transfer(part, remote, report=report, timeout_s=timeout_s)
        except _TransferError as error:
            reason = str(error)
            if _size(part) <= before:
                break
    if _size(part) != remote.num_bytes:
        kept = f"; {_size(part):,} bytes are kept, the same command goes on from there"
        raise DataError(
            f"could not download {remote.url}: {reason}{kept if _size(part) else ''}", hint=hint
        )


def _transfer(part: Path, remote: RemoteFile, *, report: Progress, timeout_s: float) -> None:
    offset = _size(part)
    with _request(remote.url, offset, timeout_s) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        _check_offer(response, remote, offset=offset if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:
            done = offset if resumed else 0
            while chunk := _read(response):
                done += len(chunk)
                if done > remote.num_bytes:
                    raise _not_published(remote, f"more than {remote.num_bytes:,} bytes")
                file.write(chunk)
                report(f"downloading {remote.file_name}", done, remote.num_bytes)
    if done < remote.num_bytes:
        raise _TransferError(f"the connection closed after {done:,} of {remote.num_bytes:,} bytes")


def _request(url: str, offset: int, timeout_s: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "mnft"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return _request(url, 0, timeout_s)
        raise _TransferError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _TransferError(_brief(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(_brief(error)) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _opener() -> urllib.request.OpenerDirector:
    # urlopen would also follow a redirect to ftp, and open file: addresses
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _check_offer(response: http.client.HTTPResponse, remote: RemoteFile, *, offset: int) -> None:
    """Refuse a file of another size before it is downloaded: often a login page, not the file."""
    total = response.headers.get("Content-Length")
    if response.status == http.client.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
        if match is None or int(match[1]) != offset:
            raise _TransferError(f"the server answered with the wrong range, {content_range!r}")
        total = match[2]
    if total and total.isdigit() and int(total) != remote.num_bytes:
        raise _not_published(remote, f"a file of {int(total):,} bytes")


def _not_published(remote: RemoteFile, found: str) -> DataError:
    return DataError(
        f"{remote.url}: expected {remote.num_bytes:,} bytes, the server offers {found}",
        hint="a login page or proxy may have answered; else the file was changed by its publisher",
    )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(_brief(error)) from error


def _brief(error: BaseException | str) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _within_limits(
    tar: tarfile.TarFile, archive: Path, max_members: int, max_bytes: int
) -> Iterator[tarfile.TarInfo]:
    total = 0
    for count, member in enumerate(tar, 1):
        total += member.size
        if count > max_members:
            raise DataError(f"{archive}: more than {max_members:,} members, at {member.name!r}")
        if total > max_bytes:
            raise DataError(
                f"{archive}: unpacks to more than {max_bytes:,} bytes, at {member.name!r}"
            )
        yield member


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, *, archive: Path, folder: Path
) -> None:
    path = PurePosixPath(member.name)
    # the data filter makes an absolute path relative; here it means that someone meant harm
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: member {member.name!r} would land outside the folder")
    try:
        tar.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: member {member.name!r} is refused: {error}") from error
