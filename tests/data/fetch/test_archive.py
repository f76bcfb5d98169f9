"""Downloads against a real local server, and archives that try to do harm."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import itertools
import resource
import socket
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.reporting import Recorder

from mnft.data.fetch import archive
from mnft.data.fetch.archive import RemoteFile
from mnft.errors import DataError

CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 300_000))
HINT = "bring it by hand"


@dataclass
class Behaviour:
    """What the server does with the next requests, and what it was asked."""

    content: bytes = CONTENT
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)  # bytes sent, one number a request
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announce: bool = True
    hang: threading.Event | None = None
    asked: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        does = self.behaviour
        asked = self.headers.get("Range")
        does.asked.append(asked)
        if does.hang:
            does.hang.wait(10)
            return
        body, status = does.content, does.status
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and does.ranges else 0
        if status == 416 and not asked:
            status = 200
        elif status == 200 and start:
            status, body = 206, body[start:]
        self.send_response(status)
        if status == 206 and "Content-Range" not in does.headers:
            total = len(does.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in does.headers.items():
            self.send_header(name, value)
        if does.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: does.drop_after.pop(0)] if does.drop_after else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, RemoteFile]]:
    behaviour = Behaviour()
    handler = type("OneHandler", (Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield behaviour, remote_for(f"http://127.0.0.1:{running.server_port}/set.tar")
        if behaviour.hang:
            behaviour.hang.set()
        running.shutdown()
        thread.join()


def remote_for(url: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(url, len(content), hashlib.sha256(content).hexdigest())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part_of(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    part = folder / "set.tar.part"
    part.write_bytes(content)
    return part


def test_downloads_and_reports(server, tmp_path):
    behaviour, remote = server
    recorder = Recorder()
    path = archive.download(remote, tmp_path / "new" / "cache", hint=HINT, reporter=recorder)
    assert path == tmp_path / "new" / "cache" / "set.tar"
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["set.tar"]
    downloading = [done for what, done, _ in recorder.seen if what == "downloading set.tar"]
    assert downloading == sorted(downloading)
    assert downloading[-1] == len(CONTENT)
    assert recorder.seen[-1] == ("checking set.tar", len(CONTENT), len(CONTENT))
    assert behaviour.asked == [None]


def test_what_is_there_is_not_downloaded_again(server, tmp_path):
    behaviour, remote = server
    for _ in range(2):
        archive.download(remote, tmp_path, hint=HINT)
    assert len(behaviour.asked) == 1


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "range-ignored"])
def test_resumes(server, tmp_path, ranges):
    behaviour, remote = server
    behaviour.ranges = ranges
    part_of(tmp_path, CONTENT[:70_000])
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=70000-"]
    assert not (tmp_path / "set.tar.part").exists()


def test_resume_counts_what_was_there(server, tmp_path):
    _, remote = server
    part_of(tmp_path, CONTENT[:-1])
    recorder = Recorder()
    archive.download(remote, tmp_path, hint=HINT, reporter=recorder)
    assert recorder.seen[0] == ("downloading set.tar", len(CONTENT), len(CONTENT))


def test_a_whole_part_needs_no_network(tmp_path):
    part_of(tmp_path, CONTENT)
    remote = remote_for("http://127.0.0.1:9/set.tar")
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_begun_anew(server, tmp_path):
    behaviour, remote = server
    part_of(tmp_path, CONTENT + b"more")
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT
    assert behaviour.asked == [None]


def test_a_range_that_is_refused_is_begun_anew(server, tmp_path):
    behaviour, remote = server
    behaviour.status = 416
    part_of(tmp_path, CONTENT[:10])
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=10-", None]


def test_a_wrong_range_is_not_appended(server, tmp_path):
    behaviour, remote = server
    behaviour.headers = {"Content-Range": f"bytes 0-9/{len(CONTENT)}"}
    part = part_of(tmp_path, CONTENT[:10])
    with pytest.raises(DataError, match="wrong range"):
        archive.download(remote, tmp_path, hint=HINT)
    assert part.read_bytes() == CONTENT[:10]


def test_goes_on_after_a_dropped_connection(server, tmp_path):
    behaviour, remote = server
    behaviour.drop_after = [1000, 500]
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_connection_that_always_drops_leaves_a_part_to_go_on_with(server, tmp_path):
    behaviour, remote = server
    behaviour.ranges = False
    behaviour.drop_after = [1000] * 10
    with pytest.raises(DataError, match=r"after 1,000 of 300,000 bytes; 1,000 bytes are kept") as e:
        archive.download(remote, tmp_path, hint=HINT)
    assert e.value.hint == HINT
    assert names_in(tmp_path) == ["set.tar.part"]
    assert (tmp_path / "set.tar.part").read_bytes() == CONTENT[:1000]
    behaviour.ranges, behaviour.drop_after = True, []
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT


@pytest.mark.parametrize("where", ["server", "part", "cache"])
def test_wrong_content_is_named_and_removed(server, tmp_path, where):
    behaviour, remote = server
    wrong = b"x" + CONTENT[1:]
    if where == "server":
        behaviour.content = wrong
    else:
        (tmp_path / ("set.tar.part" if where == "part" else "set.tar")).write_bytes(wrong)
    with pytest.raises(DataError) as e:
        archive.download(remote, tmp_path, hint=HINT)
    assert f"expected SHA-256 {remote.sha256}" in e.value.message
    assert f"found {hashlib.sha256(wrong).hexdigest()}" in e.value.message
    assert names_in(tmp_path) == []
    behaviour.content = CONTENT
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_comes(server, tmp_path):
    behaviour, remote = server
    behaviour.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match=r"expected 300,000 bytes, .* a file of 26 bytes"):
        archive.download(remote, tmp_path, hint=HINT)
    assert names_in(tmp_path) == []


def test_an_endless_file_is_cut_off(server, tmp_path):
    behaviour, remote = server
    behaviour.announce, behaviour.content = False, CONTENT + b"more"
    with pytest.raises(DataError, match=r"more than 300,000 bytes"):
        archive.download(remote, tmp_path, hint=HINT)


def test_no_such_file(server, tmp_path):
    behaviour, remote = server
    behaviour.status = 404
    with pytest.raises(
        DataError, match=r"could not download http://.*: the server answered 404"
    ) as e:
        archive.download(remote, tmp_path, hint=HINT)
    assert e.value.hint == HINT
    assert len(behaviour.asked) == 1


def test_a_port_where_nobody_listens(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DataError, match="refused") as e:
        archive.download(remote_for(f"http://127.0.0.1:{port}/set.tar"), tmp_path, hint=HINT)
    assert e.value.hint == HINT


def test_a_server_that_says_nothing(server, tmp_path):
    behaviour, remote = server
    behaviour.hang = threading.Event()
    with pytest.raises(DataError, match="timed out"):
        archive.download(remote, tmp_path, hint=HINT, timeout_s=0.2)


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_only_http(server, tmp_path, scheme):
    behaviour, remote = server
    secret = tmp_path / "secret" / "set.tar"
    secret.parent.mkdir()
    secret.write_bytes(CONTENT)
    with pytest.raises(DataError, match="could not download"):
        archive.download(remote_for(f"{scheme}://127.0.0.1{secret}"), tmp_path, hint=HINT)
    behaviour.status, behaviour.headers = 302, {"Location": f"{scheme}://127.0.0.1{secret}"}
    with pytest.raises(DataError, match="could not download"):
        archive.download(remote, tmp_path, hint=HINT)


def test_an_interrupted_download_keeps_its_part(server, tmp_path):
    behaviour, remote = server
    behaviour.drop_after = [100_000]

    def interrupt(_what: str, done: int) -> None:
        if done >= 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.download(remote, tmp_path, hint=HINT, reporter=Recorder(interrupt))
    assert (tmp_path / "set.tar.part").stat().st_size == 100_000
    archive.download(remote, tmp_path, hint=HINT)
    assert behaviour.asked == [None, "bytes=100000-"]


def test_a_full_disk(server, tmp_path):
    _, remote = server
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            archive.download(remote, tmp_path, hint=HINT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert archive.download(remote, tmp_path, hint=HINT).read_bytes() == CONTENT


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_extracts(tmp_path, mode):
    path = make_tar(
        tmp_path / "set.tar.gz",
        (member("set", tarfile.DIRTYPE), b""),
        (member("set/a.jpg"), b"a"),
        (member("set/deep/b.jpg"), b"bb"),
        (member("set/link.jpg", tarfile.SYMTYPE, "a.jpg"), b""),
        mode=mode,
    )
    recorder = Recorder()
    archive.extract(path, tmp_path / "out", reporter=recorder)
    assert (tmp_path / "out/set/a.jpg").read_bytes() == b"a"
    assert (tmp_path / "out/set/deep/b.jpg").read_bytes() == b"bb"
    assert (tmp_path / "out/set/link.jpg").read_bytes() == b"a"
    what, done, total = recorder.seen[-1]
    assert what == "unpacking set.tar.gz"
    assert 0 < done <= total == path.stat().st_size


@pytest.mark.parametrize(
    "bad",
    [
        lambda: member("../escaped"),
        lambda: member("set/../../escaped"),
        lambda: member("/escaped"),
        lambda: member("escaped", tarfile.SYMTYPE, "../outside"),
        lambda: member("escaped", tarfile.SYMTYPE, "/etc/passwd"),
        lambda: member("escaped", tarfile.LNKTYPE, "../outside"),
        lambda: member("escaped", tarfile.FIFOTYPE),
        lambda: member("escaped", tarfile.CHRTYPE),
    ],
    ids=[
        "parent",
        "parent-within",
        "absolute",
        "link",
        "absolute-link",
        "hard-link",
        "fifo",
        "device",
    ],
)
def test_harm_is_refused_and_nothing_left(tmp_path, bad: Callable[[], tarfile.TarInfo]):
    (tmp_path / "outside").write_text("not yours")
    info = bad()
    path = make_tar(tmp_path / "set.tgz", (member("set/good.jpg"), b"good"), (info, b""))
    with pytest.raises(DataError) as e:
        archive.extract(path, tmp_path / "out")
    assert repr(info.name) in e.value.message
    assert names_in(tmp_path) == ["outside", "set.tgz"]


def test_writing_through_a_link_is_refused(tmp_path):
    path = make_tar(
        tmp_path / "set.tgz",
        (member("way", tarfile.SYMTYPE, ".."), b""),
        (member("way/escaped"), b"harm"),
    )
    with pytest.raises(DataError, match="'way'"):
        archive.extract(path, tmp_path / "out")
    assert names_in(tmp_path) == ["set.tgz"]


def test_limits(tmp_path):
    few = make_tar(tmp_path / "few.tgz", *((member(f"{n}.jpg"), b"") for n in range(4)))
    archive.extract(few, tmp_path / "out", max_members=4)
    with pytest.raises(DataError, match=r"more than 3 members, at '3.jpg'"):
        archive.extract(few, tmp_path / "other", max_members=3)
    bomb = make_tar(tmp_path / "bomb.tgz", (member("zeros"), bytes(5_000_000)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"more than 1,000,000 bytes, at 'zeros'"):
        archive.extract(bomb, tmp_path / "other", max_bytes=1_000_000)
    assert not (tmp_path / "other").exists()


def good_start_and_bad_block(whole: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    start = compressor.compress(gzip.decompress(whole)[:100_000])
    # block type 3 does not exist in deflate
    return start + compressor.flush(zlib.Z_FULL_FLUSH) + b"\x07" * 8


@pytest.mark.parametrize("damage", ["not-tar", "empty", "cut", "bad-block"])
def test_damaged_archives(tmp_path, damage):
    path = make_tar(tmp_path / "set.tar", (member("a.jpg"), CONTENT), mode="w")
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    path = tmp_path / "set.tgz"
    path.write_bytes(
        {
            "not-tar": b"<html>404</html>" * 100,
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "bad-block": good_start_and_bad_block(whole),
        }[damage]
    )
    with pytest.raises(DataError, match=r"set\.tgz: not a tar archive, or damaged: \S") as e:
        archive.extract(path, tmp_path / "out")
    assert "\n" not in e.value.message
    assert not (tmp_path / "out").exists()


def test_an_interrupted_extraction_leaves_nothing(tmp_path):
    path = make_tar(tmp_path / "set.tgz", (member("a.jpg"), b"a"))

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.extract(path, tmp_path / "out", reporter=Recorder(interrupt))
    assert names_in(tmp_path) == ["set.tgz"]
