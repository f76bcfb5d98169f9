"""Things that go away or break while a run needs them: folders, images, stores, states, memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults_support import (
    Place,
    Warm,
    assert_same_run,
    epochs_of,
    may_mount,
    write_images,
)

from mnft.model.bundle import load_bundle
from mnft.runs.folder import RunFolder, read_log

pytestmark = pytest.mark.faults
# In the second of three epochs, of three updates each.
LATE = {"at": 5, "name": "optimizer step"}
FILES = ("data.store=off",)
WORKERS = ("data.store=off", "data.workers=2", "train.batch_size=2")


@pytest.fixture
def place(tmp_path: Path, warm: Warm) -> Place:
    return Place(tmp_path / "place", warm, write_images(tmp_path / "images"))


def run_whole(place: Place, *sets: str) -> Place:
    whole = Place(place.folder.parent / "whole", place.warm, place.images)
    assert whole.train(*sets).code == 0
    return whole


# The run folder


def test_the_run_folder_is_deleted(place: Place) -> None:
    failed = place.train(act="import shutil; shutil.rmtree('runs/run')", **LATE)
    failed.fails_clearly(1, "runs/run: the run folder was removed or replaced")
    assert not place.run.exists()
    assert place.train().code == 0


def test_the_run_folder_is_replaced_by_another_run_of_the_name(place: Place) -> None:
    """What is in the new folder is not touched."""
    act = (
        "import os, pathlib; os.rename('runs/run', 'moved'); os.mkdir('runs/run');"
        "pathlib.Path('runs/run/config.yaml').write_text('of another')"
    )
    failed = place.train(act=act, **LATE)
    failed.fails_clearly(1, "runs/run: the run folder was removed or replaced")
    assert [path.name for path in place.run.iterdir()] == ["config.yaml"]
    assert load_bundle(place.folder / "moved" / "best").record["result"]["epoch"] == 1


def test_all_runs_are_deleted(place: Place) -> None:
    failed = place.train(act="import shutil; shutil.rmtree('runs')", **LATE)
    failed.fails_clearly(1, "runs/run: the run folder was removed or replaced")


# The images


@pytest.mark.parametrize("sets", [FILES, pytest.param(WORKERS, marks=pytest.mark.slow)])
def test_the_images_are_deleted(place: Place, sets: tuple[str, ...]) -> None:
    late = {**LATE, "at": 5 if sets == FILES else 18}
    act = f"import shutil; shutil.rmtree({str(place.images)!r})"
    shutil.copytree(place.images, place.folder / "copy")
    failed = place.train(*sets, act=act, **late)
    failed.fails_clearly(1, str(place.images), "cannot be read: No such file")
    assert load_bundle(place.run / "best")
    place.resume().fails_clearly(1, "images changed since the run began")
    shutil.copytree(place.folder / "copy", place.images)
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert_same_run(run_whole(place, *sets).run, place.run)


def test_images_that_are_deleted_are_not_missed_where_they_are_stored(place: Place) -> None:
    whole = run_whole(place)
    act = f"import shutil; shutil.rmtree({str(place.images)!r})"
    assert place.train(act=act, **LATE).code == 0
    assert_same_run(whole.run, place.run)


DAMAGE = {
    "another picture": "shutil.copy(path.with_name('001.png'), path)",
    "cut off": "path.write_bytes(path.read_bytes()[:100])",
    "empty": "path.write_bytes(b'')",
    "gone": "path.unlink()",
    "a folder": "path.unlink(); path.mkdir()",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_changes(place: Place, how: str, split: str) -> None:
    """Another picture is noticed too: the figures would not be of the images in split.json."""
    path = place.images / split / "red" / "002.png"
    content = path.read_bytes()
    act = f"import shutil, pathlib; path = pathlib.Path({str(path)!r}); {DAMAGE[how]}"
    failed = place.train(*FILES, act=act, **LATE)
    words = {"gone": "No such file", "a folder": "Is a directory"}.get(how, "has changed")
    failed.fails_clearly(1, f"{split}/red/002.png", words)
    best = max(e["epoch"] for e in read_log(RunFolder(place.run)) if e.get("is_best"))
    assert load_bundle(place.run / "best").record["result"]["epoch"] == best
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)
    assert place.resume().code == 0
    assert_same_run(run_whole(place, *FILES).run, place.run)


def test_an_image_that_changes_while_the_store_is_built(place: Place) -> None:
    path = place.images / "val" / "red" / "002.png"
    act = f"import pathlib; pathlib.Path({str(path)!r}).write_bytes(b'no image')"
    failed = place.train(act=act, at=1, name="before os.rename .about.json")
    failed.fails_clearly(1, "val/red/002.png")
    assert not place.run.exists()


# The store


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


STORES = {
    "a flipped bit in the pixels": lambda pixels, index: _flip(pixels, 5000),
    "a flipped bit in the last pixel": lambda pixels, index: _flip(pixels, -1),
    "pixels cut off": lambda pixels, index: pixels.write_bytes(pixels.read_bytes()[:7000]),
    "no pixels": lambda pixels, index: pixels.unlink(),
    "a flipped bit in an entry": lambda pixels, index: _flip(index, 100),
    "a flipped bit in the first entry": lambda pixels, index: _flip(index, 3),
    "entries cut off": lambda pixels, index: index.write_bytes(index.read_bytes()[:333]),
    "no entries": lambda pixels, index: index.unlink(),
    "zeros for entries": lambda pixels, index: index.write_bytes(bytes(1000)),
    "junk for entries": lambda pixels, index: index.write_bytes(b"junk" * 400),
    "both empty": lambda pixels, index: (pixels.write_bytes(b""), index.write_bytes(b"")),
}


def test_a_damaged_store_is_mended(place: Place) -> None:
    """Every damage in turn, to both geometries; each time the run equals the first."""
    whole = run_whole(place)
    for how, damage in STORES.items():
        cache = whole.folder / "cache"
        stores = [path.parent for path in sorted(cache.glob("*/*/index.bin"))]
        assert len(stores) == 2
        for store in stores:
            damage(store / "pixels.bin", store / "index.bin")
        shutil.rmtree(whole.run, ignore_errors=True)
        mended = whole.train()
        assert mended.code == 0, (how, mended.err)
        assert "images decoded in" in mended.err, how
        shutil.rmtree(place.run, ignore_errors=True)
        assert place.train().code == 0
        assert_same_run(place.run, whole.run)
        again = whole.call("train", whole.config, "--set", "run.name=again")
        assert "all images decoded before" in again.err, how
        shutil.rmtree(whole.run.parent / "again")


def test_a_store_that_is_cut_off_in_use(place: Place) -> None:
    """Without the check the system would end the process with SIGBUS."""
    whole = run_whole(place)
    act = "import glob, os; [os.truncate(p, 100) for p in glob.glob('cache/*/*/pixels.bin')]"
    failed = place.train(act=act, **LATE)
    failed.fails_clearly(1, "pixels.bin: the stored images were cut off")
    assert load_bundle(place.run / "best")
    assert place.resume().code == 0
    assert_same_run(whole.run, place.run)


def test_a_store_that_is_deleted_in_use_is_not_missed(place: Place) -> None:
    whole = run_whole(place)
    assert place.train(act="import shutil; shutil.rmtree('cache')", **LATE).code == 0
    assert_same_run(whole.run, place.run)


# States and models


def test_all_three_states_are_damaged(place: Place) -> None:
    assert place.train().code == 0
    models = {p: p.read_bytes() for p in place.run.glob("*/model.safetensors")}
    states = sorted(place.run.glob("resume*.pt"))
    assert len(states) == 3
    for state in states:
        content = state.read_bytes()
        state.unlink()
        state.write_bytes(content[: len(content) // 2])
    failed = place.resume("train.epochs=5")
    failed.fails_clearly(1, "resume.pt: damaged resume state", "hint: ")
    assert {p: p.read_bytes() for p in place.run.glob("*/model.safetensors")} == models
    assert load_bundle(place.run / "best")


@pytest.mark.parametrize("count", [1, 2])
def test_the_newest_states_are_damaged(place: Place, count: int) -> None:
    whole = run_whole(place)
    assert place.train().code == 0
    for name in ("resume.pt", "resume-1.pt")[:count]:
        content = (place.run / name).read_bytes()
        (place.run / name).unlink()
        (place.run / name).write_bytes(content[:-100])
    resumed = place.resume()
    assert resumed.code == 0, resumed.err
    assert f"resuming from resume-{count}.pt" in resumed.err
    assert f"resumed  after epoch {3 - count}," in resumed.err
    assert_same_run(whole.run, place.run)


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "empty", "gone"])
def test_the_best_model_is_damaged(place: Place, how: str) -> None:
    assert place.train("train.epochs=1").code == 0
    weights = place.run / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.unlink()
    if how == "a flipped bit":
        content[-1000] ^= 1
    if how != "gone":
        cut = {"cut off": content[:-50], "empty": b""}.get(how, content)
        weights.write_bytes(cut)
    failed = place.call("eval", "--ckpt", place.run)
    failed.fails_clearly(1, str(Path("runs/run/best")))
    assert place.call("eval", "--ckpt", place.run / "last").code == 0


@pytest.mark.parametrize("name", ["config.yaml", "split.json", "log.jsonl"])
@pytest.mark.parametrize("how", ["empty", "junk"])
def test_the_run_s_own_files_are_damaged(place: Place, name: str, how: str) -> None:
    assert place.train("train.epochs=1").code == 0
    (place.run / name).write_bytes(b"" if how == "empty" else bytes(range(256)))
    ended = place.resume("train.epochs=2")
    if name == "log.jsonl":  # is put together again from the state
        assert ended.code == 0, ended.err
        assert [entry["epoch"] for entry in epochs_of(place.run)] == [1, 2]
    else:
        ended.fails_clearly(2 if name == "config.yaml" else 1, f"runs/run/{name}")


# Processes and memory


def test_a_loading_process_is_killed(place: Place) -> None:
    act = "import multiprocessing as m; m.active_children()[0].kill(); import time; time.sleep(1)"
    failed = place.train(*WORKERS, act=act, at=18, name="optimizer step")
    failed.fails_clearly(1, "a process that loads images was killed", "--resume")
    assert load_bundle(place.run / "best").record["result"]["epoch"] == 1
    assert place.resume().code == 0
    assert_same_run(run_whole(place, *WORKERS).run, place.run)


@pytest.mark.skipif(not may_mount(), reason="this system lets users mount nothing")
@pytest.mark.parametrize(("size", "says"), [("4k", "a batch takes"), ("60k", "no room")])
def test_shared_memory_is_too_small(place: Place, size: str, says: str) -> None:
    """Refused at once where no batch fits; else when a batch does not."""
    sets = ("data.store=off", "data.workers=2", "train.batch_size=8", "eval.batch_size=4")
    small = Warm(f"mount -t tmpfs -o size={size} none /dev/shm")
    place.warm, usual = small, place.warm
    try:
        place.train(*sets).fails_clearly(1, "/dev/shm", "data.workers", says)
        auto = [
            part for s in (sets[0], "data.workers=auto", "run.name=auto") for part in ("--set", s)
        ]
        ended = place.call("train", place.config, *auto)
        assert ended.code == 0, ended.err
    finally:
        small.close()
    place.warm = usual
    resumed = place.resume() if place.run.exists() else place.train(*sets)
    assert resumed.code == 0, resumed.err
    assert_same_run(run_whole(place, *sets).run, place.run)


LIMIT = """
import re, resource
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + {more}, size + {more}))
"""


@pytest.mark.parametrize(
    "megabytes",
    [1, 12, *(pytest.param(m, marks=pytest.mark.slow) for m in (2, 4, 8, 16, 24, 32, 48, 64, 128))],
)
def test_memory_runs_out(place: Place, megabytes: int) -> None:
    """RLIMIT_AS, so many MB above what the process has when the command begins."""
    sets = ("model.name=mobilenetv2_035", "data.img_size=32", "data.store=off")
    ended = place.train(*sets, first=LIMIT.format(more=megabytes << 20))
    if ended.code != 0:
        ended.fails_clearly(1, "memory")
    assert not (place.run / "best").exists() or load_bundle(place.run / "best")
    resumed = place.go_on() if place.run.exists() else place.train(*sets)
    assert resumed.code == 0, resumed.err


def test_memory_runs_out_in_the_middle(place: Place) -> None:
    sets = ("model.name=mobilenetv2_035", "data.img_size=32")
    ended = place.train(*sets, act=LIMIT.format(more=0), **LATE)
    if ended.code != 0:
        ended.fails_clearly(1, "memory")
    assert load_bundle(place.run / "best")
    assert place.resume().code == 0
    assert_same_run(run_whole(place, *sets).run, place.run)
