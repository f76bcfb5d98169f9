"""Disks that are full, limited, read-only or closed: one message, the last good model whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_support import Place, Warm, assert_same_run, epochs_of, may_mount, write_images

from mnft.model.bundle import load_bundle

pytestmark = pytest.mark.faults
# The store's own reserve would keep it from filling the disk.
NO_RESERVE = "import mnft.data.store.cache as cache; cache._RESERVE_BYTES = -(1 << 40)"
needs_mounts = pytest.mark.skipif(not may_mount(), reason="this system lets users mount nothing")


@pytest.fixture
def place(tmp_path: Path, warm: Warm, fault_images: Path) -> Place:
    return Place(tmp_path / "place", warm, fault_images)


def folder_of(part: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(part.iterdir())}


@pytest.mark.parametrize(
    "limit", [1_000, 20_000, 200_000, pytest.param(400_000, marks=pytest.mark.slow)]
)
def test_files_may_not_grow(place: Place, tmp_path: Path, warm: Warm, limit: int) -> None:
    """RLIMIT_FSIZE: the split, the store, the model and the state are each too large in turn."""
    begun = place.train(limits={"RLIMIT_FSIZE": limit})
    begun.fails_clearly(1, "File too large")
    assert not (place.run / "best").exists() or load_bundle(place.run / "best")
    resumed = place.go_on()
    assert resumed.code == 0, resumed.err
    whole = Place(tmp_path / "whole", warm, place.images)
    assert whole.train().code == 0
    assert_same_run(whole.run, place.run)


@pytest.mark.parametrize("limit", [2_000, 200_000, 400_000])
def test_a_limit_met_when_there_is_a_model_already(
    place: Place, tmp_path: Path, warm: Warm, limit: int
) -> None:
    assert place.train("train.epochs=2").code == 0
    models = [folder_of(place.run / part) for part in ("best", "last")]
    failed = place.resume("train.epochs=4", limits={"RLIMIT_FSIZE": limit})
    failed.fails_clearly(1, "File too large")
    if limit < 300_000:
        assert [folder_of(place.run / part) for part in ("best", "last")] == models
    assert load_bundle(place.run / "best").record["result"]["epoch"] <= 3
    resumed = place.resume("train.epochs=4")
    assert resumed.code == 0, resumed.err
    whole = Place(tmp_path / "whole", warm, place.images)
    assert whole.train("train.epochs=4").code == 0
    for part in ("best", "last"):
        one, two = (run / part / "model.safetensors" for run in (whole.run, place.run))
        assert one.read_bytes() == two.read_bytes()


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Warm, Path]]:
    """Processes that see a disk of 8 MB, and its folder."""
    disk = tmp_path_factory.mktemp("disk")
    process = Warm(f"mount -t tmpfs -o size=8m none '{disk}'")
    yield process, disk
    process.close()


FILL = """
import os, shutil
os.makedirs({runs!r}, exist_ok=True)
with open({filler!r}, "wb") as stream:
    stream.truncate(0)
    room = shutil.disk_usage({disk!r}).free - {free}
    stream.write(bytes(max(0, room)))
"""
FREE = """
import os, shutil
os.remove({filler!r})
"""
COPY_OUT = "import shutil; shutil.copytree({runs!r}, {out!r}); shutil.rmtree({runs!r})"


@needs_mounts
@pytest.mark.parametrize(
    "free",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(20_000, marks=pytest.mark.slow),
        300_000,
        pytest.param(700_000, marks=pytest.mark.slow),
        pytest.param(1_200_000, marks=pytest.mark.slow),
        1_500_000,
        pytest.param(2_300_000, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk(
    small_disk: tuple[Warm, Path], tmp_path: Path, fault_images: Path, warm: Warm, free: int
) -> None:
    """A real small disk with so many bytes left; resumed once there is room."""
    small, disk = small_disk
    runs, filler = disk / str(free), disk / "filler"
    names = {"runs": str(runs), "filler": str(filler), "disk": str(disk), "free": free}
    place = Place(tmp_path / "place", small, fault_images, run={"dir": str(runs)})
    failed = place.train(first=FILL.format(**names))
    failed.fails_clearly(1, "No space left on device")
    seen = tmp_path / "seen"
    copy = f"import shutil; shutil.copytree({str(runs)!r}, {str(seen)!r})"
    assert place.call("--version", first=copy).code == 0
    assert not list(seen.glob("run/.*.tmp")), "what could not be written is removed"
    if (seen / "run" / "best").exists():
        assert load_bundle(seen / "run" / "best")
    args = ["train", "--resume", runs / "run"] if (seen / "run").exists() else None
    resumed = place.call(*(args or ["train", place.config]), first=FREE.format(**names))
    assert resumed.code == 0, resumed.err
    out = tmp_path / "out"
    assert place.call("--version", first=COPY_OUT.format(out=str(out), **names)).code == 0
    whole = Place(tmp_path / "whole", warm, fault_images)
    assert whole.train().code == 0
    assert_same_run(whole.run, out / "run")


@needs_mounts
@pytest.mark.parametrize("free", [0, 30_000])
def test_a_full_disk_for_the_store_costs_only_time(
    small_disk: tuple[Warm, Path], tmp_path: Path, fault_images: Path, free: int
) -> None:
    small, disk = small_disk
    filler = disk / "filler"
    names = {"runs": str(disk / "r"), "filler": str(filler), "disk": str(disk), "free": free}
    place = Place(tmp_path / "place", small, fault_images)
    env = {"MNFT_CACHE": str(disk / "cache")}
    ended = place.train(first=f"{FILL.format(**names)}\n{NO_RESERVE}", env=env)
    assert ended.code == 0, ended.err
    assert "no store, every epoch decodes all images" in ended.err
    assert "No space left on device" in ended.err
    assert load_bundle(place.run / "best")
    clean = f"{FREE.format(**names)}\nshutil.rmtree({str(disk / 'cache')!r}, ignore_errors=True)"
    assert place.call("--version", first=clean).code == 0


def test_the_log_cannot_be_written(place: Place) -> None:
    """/dev/full stands for the disk, so that the log alone fails."""
    act = "import os; log = 'runs/run/log.jsonl'; os.remove(log); os.symlink('/dev/full', log)"
    failed = place.train(at=4, name="optimizer step", act=act)
    failed.fails_clearly(1, "log.jsonl", "No space left on device")
    assert load_bundle(place.run / "best")
    (place.run / "log.jsonl").unlink()
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert [entry["epoch"] for entry in epochs_of(place.run)] == [1, 2, 3]


@needs_mounts
def test_a_disk_that_becomes_read_only(
    tmp_path: Path, fault_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("ro")
    small = Warm(f"mount -t tmpfs -o size=8m none '{disk}'")
    try:
        place = Place(tmp_path / "place", small, fault_images, run={"dir": str(disk / "runs")})
        mount = f"import subprocess; subprocess.run(['mount', '-o', 'remount,{{}}', {str(disk)!r}])"
        act = mount.format("ro")
        failed = place.train(at=5, name="optimizer step", act=act)
        failed.fails_clearly(1, "Read-only file system")
        again = place.call("train", "--resume", disk / "runs" / "run")
        again.fails_clearly(1, "Read-only file system")
        resume = ("train", "--resume", disk / "runs" / "run")
        resumed = place.call(*resume, first=mount.format("rw"))
        assert resumed.code == 0, resumed.err
    finally:
        small.close()


@pytest.fixture
def nobody(warm: Warm) -> Iterator[tuple[Place, dict[str, int]]]:
    """A place, and what makes its processes those of a user without rights, also under root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = Place(Path(folder) / "place", warm, write_images(Path(folder) / "images"))
        if os.getuid() != 0:
            yield place, {}
            return
        for path in (place.folder, *place.folder.rglob("*")):
            os.chown(path, 65534, 65534)
        yield place, {"uid": 65534}


def test_no_permission_to_make_the_run(nobody: tuple[Place, dict[str, int]]) -> None:
    place, user = nobody
    (place.folder / "runs").mkdir(mode=0o555)
    refused = place.train(**user)
    refused.fails_clearly(2, "cannot be made: Permission denied")
    (place.folder / "runs").chmod(0o777)
    assert place.train(**user).code == 0


def test_permission_is_lost_in_the_middle(nobody: tuple[Place, dict[str, int]]) -> None:
    place, user = nobody
    failed = place.train(
        at=5, name="optimizer step", act="import os; os.chmod('runs/run', 0o555)", **user
    )
    failed.fails_clearly(1, "runs/run", "Permission denied")
    assert load_bundle(place.run / "best").record["result"]["epoch"] == 1
    place.run.chmod(0o755)
    assert place.call("train", "--resume", place.run, **user).code == 0


def test_no_permission_to_read_an_image(nobody: tuple[Place, dict[str, int]]) -> None:
    place, user = nobody
    image = place.images / "train" / "red" / "003.png"
    image.chmod(0)
    place.train(**user).fails_clearly(1, "train/red/003.png", "Permission denied")


def test_no_permission_to_write_the_store_costs_only_time(
    nobody: tuple[Place, dict[str, int]],
) -> None:
    place, user = nobody
    cache = place.folder / "cache"
    cache.mkdir(mode=0o555)
    ended = place.train(**user)
    assert ended.code == 0, ended.err
    assert "no store, every epoch decodes all images" in ended.err
    cache.chmod(0o755)


def test_files_where_folders_should_be(place: Place) -> None:
    (place.folder / "runs").write_text("")
    place.train().fails_clearly(2, "is a file")
    (place.folder / "runs").unlink()
    shutil.rmtree(place.folder / "cache")
    (place.folder / "cache").write_text("")
    ended = place.train()
    assert ended.code == 0, ended.err
    assert "no store, every epoch decodes all images" in ended.err


def test_the_kernels_own_folders_take_no_run(place: Place) -> None:
    place.train("run.dir=/proc").fails_clearly(2, "/proc")
    place.train("run.dir=/proc/self/runs").fails_clearly(2, "/proc/self/runs")
