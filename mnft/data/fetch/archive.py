"""Published archives: download with resume, check by SHA-256, unpack without leaving the folder."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mnft.errors import DataError, first_line
from mnft.reporter import SILENT, Progress, Reporter

# food101, the largest of the catalogue, has about 101,200 members and 5 GB
MAX_MEMBERS = 250_000
MAX_UNPACKED_BYTES = 16 * 2**30
# Images hardly shrink in an archive; gzip makes zeros a thousand times smaller.
MAX_RATIO, _MAY_SHRINK_BYTES = 100, 64 * 2**20
TIMEOUT_S = 30.0
_ATTEMPTS = 5
_CHUNK_BYTES = 256 * 1024
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


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


def download(
    remote: RemoteFile,
    folder: Path,
    *,
    hint: str,
    reporter: Reporter = SILENT,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Download a file into `folder`, or find it there, and check it.

    What arrived before an interruption stays as `<file>.part`, and the next call resumes it.

    Args:
        remote: the file; http or https only.
        folder: the folder for the file; it is made if missing.
        hint: what to do when the file cannot be had from the network.
        reporter: receives the bytes done.
        timeout_s: how long the server may be silent.

    Raises:
        DataError: no network, no such file, a connection that closes early, or a file whose
            checksum is wrong; the wrong file is removed.
        OSError: the disk is full or cannot be written.
    """
    path = target = folder / remote.file_name
    if not target.exists():
        path = folder / f"{remote.file_name}.part"
        folder.mkdir(parents=True, exist_ok=True)
        if _size(path) > remote.num_bytes:
            path.unlink()
        reason = ""
        with reporter.track(f"downloading {remote.file_name}") as on_progress:
            # Resume after a broken connection as long as that brings more bytes.
            for _ in range(_ATTEMPTS):
                before = _size(path)
                if before == remote.num_bytes:
                    break
                try:
                    _transfer(path, remote, on_progress=on_progress, timeout_s=timeout_s)
                except _TransferError as error:
                    reason = str(error)
                    if _size(path) <= before:
                        break
        if (size := _size(path)) != remote.num_bytes:
            kept = f"; {size:,} bytes are kept, and the same command resumes from there"
            raise DataError(
                f"could not download {remote.url}: {reason}{kept if size else ''}", hint=hint
            )
    try:
        verify(path, remote, reporter)
    except DataError as error:
        path.unlink()
        error.hint = f"the wrong file was removed; run the command again to fetch {remote.url}"
        raise
    return path.replace(target)


def verify(path: Path, remote: RemoteFile, reporter: Reporter = SILENT) -> None:
    """Check that `path` is the published file, by its SHA-256.

    Raises:
        DataError: it is not; the message names the expected and the found checksum.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file, reporter.track(f"checking {remote.file_name}") as on_progress:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done, remote.num_bytes)
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
    reporter: Reporter = SILENT,
) -> None:
    """Unpack a tar archive, plain or gzip, whatever its extension, into a working folder.

    Args:
        archive: the file.
        folder: a folder that is made if missing; on any failure it is removed with its content.
        max_members: the limit of files and folders.
        max_bytes: the limit of unpacked bytes; from 64 MiB on, 100 times the size of the archive
            is a limit too.
        reporter: receives the bytes of the archive that were read.

    Raises:
        DataError: not a tar archive, damaged, too large, or with a member that is a device or
            would land, or links, outside `folder`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "this Python cannot unpack archives safely", hint="use Python 3.11.4 or newer"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive_bytes = archive.stat().st_size
        limit = min(max_bytes, max(_MAY_SHRINK_BYTES, MAX_RATIO * archive_bytes))
        unpacked = 0
        with (
            archive.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:*") as tar,
            reporter.track(f"unpacking {archive.name}") as on_progress,
        ):
            for number, member in enumerate(tar, 1):
                what = f"{archive}: member {member.name!r}"
                unpacked += member.size
                if number > max_members:
                    raise DataError(
                        f"{archive}: more than {max_members:,} members, at {member.name!r}"
                    )
                if unpacked > limit:
                    raise DataError(
                        f"{archive}: unpacks to more than {limit:,} bytes, at {member.name!r}"
                    )
                # The data filter makes an absolute path relative; here it means harm.
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"{what} would land outside the folder")
                try:
                    tar.extract(member, folder, filter="data")
                except tarfile.FilterError as error:
                    raise DataError(f"{what} is refused: {error}") from error
                on_progress(file.tell(), archive_bytes)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _DAMAGED):
            reason = first_line(error).rstrip(":")
            raise DataError(f"{archive}: not a tar archive, or damaged: {reason}") from error
        raise


def _transfer(part: Path, remote: RemoteFile, *, on_progress: Progress, timeout_s: float) -> None:
    """Append what `part` lacks; a server that knows no ranges sends the whole file again."""
    offset = _size(part)
    headers = {"User-Agent": "mnft"} | ({"Range": f"bytes={offset}-"} if offset else {})
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        with _network_errors():
            response = urllib.request.urlopen(request, timeout=timeout_s)
    except _TransferError as error:
        status = getattr(error.__cause__, "code", None)
        if status != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        part.unlink()
        return _transfer(part, remote, on_progress=on_progress, timeout_s=timeout_s)
    with response:
        if not isinstance(response, http.client.HTTPResponse):
            raise _TransferError("only http and https addresses are read")
        total, done = response.headers.get("Content-Length"), 0
        if response.status == http.client.PARTIAL_CONTENT:
            content_range = response.headers.get("Content-Range", "").strip()
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
            if match is None or int(match[1]) != offset:
                raise _TransferError(f"the server answered with the wrong range, {content_range!r}")
            total, done = match[2], offset
        # Refuse a file of another size before it is downloaded: often it is a login page.
        if total and total.isdigit() and int(total) != remote.num_bytes:
            raise _not_published(remote, f"a file of {int(total):,} bytes")
        with part.open("ab" if done else "wb") as file:
            while True:
                # Only the network's errors mean that another attempt may help, not the disk's.
                with _network_errors():
                    chunk = response.read1(_CHUNK_BYTES)
                if not chunk:
                    break
                done += len(chunk)
                if done > remote.num_bytes:
                    raise _not_published(remote, f"more than {remote.num_bytes:,} bytes")
                file.write(chunk)
                on_progress(done, remote.num_bytes)
    if done < remote.num_bytes:
        raise _TransferError(f"the connection closed after {done:,} of {remote.num_bytes:,} bytes")
    return None


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _TransferError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, BaseException):
            reason = getattr(reason, "strerror", None) or first_line(reason)
        raise _TransferError(reason) from error


def _not_published(remote: RemoteFile, offered: str) -> DataError:
    return DataError(
        f"{remote.url}: expected {remote.num_bytes:,} bytes, the server offers {offered}",
        hint="a login page or proxy may have answered; else the file was changed by its publisher",
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
