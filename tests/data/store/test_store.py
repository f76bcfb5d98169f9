"""The store: exact pixels, changes of content, two builders, crashes, no room, pickling."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import write_image
from torchvision.transforms import v2

from mnft.data.decode import decode
from mnft.data.manifest import Sample
from mnft.data.store import cache as cache_module
from mnft.data.store.cache import choose_cache_folder, make_room
from mnft.data.store.geometry import EvalGeometry, TrainGeometry, choose_train_geometry
from mnft.data.store.store import Store, StoreUnavailable, list_known_contents
from mnft.errors import DataError
from mnft.preprocessing import Preprocessing

TESTS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
LIMIT = 10**9
PREPROCESSING = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875)
GEOMETRY = EvalGeometry(PREPROCESSING)


def quiet(_done: int, _total: int) -> None:
    """No progress."""


def sample(root: Path, path: str) -> Sample:
    content = (root / path).read_bytes()
    return Sample(path, "a", "train", hashlib.sha256(content).hexdigest())


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, list[Sample]]:
    """Twelve images of different sizes, JPEG and PNG, some smaller than the input."""
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = (int(side) for side in rng.integers(20, 90, 2))
        rough = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        image.save(root / f"{number:02d}.{'jpg' if number % 2 else 'png'}")
    return root, [sample(root, path.name) for path in sorted(root.iterdir())]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_pixels_are_those_of_the_standard_pipeline(
    photographs, tmp_path, interpolation, channels
):
    root, samples = photographs
    spec = Preprocessing(
        (channels, 32, 32), (0.5,) * channels, (0.5,) * channels, interpolation, 0.8
    )
    store = Store(tmp_path / "cache", root, EvalGeometry(spec), channels)
    store.build(root, samples, LIMIT, quiet)
    stored = store.open(samples)
    mode = v2.InterpolationMode(interpolation)
    standard = v2.Compose([v2.Resize(40, mode), v2.CenterCrop(32), v2.PILToTensor()])
    for position, one in enumerate(samples):
        image = decode(root / one.path).convert("L" if channels == 1 else "RGB")
        expected = standard(image).permute(1, 2, 0).numpy()
        assert np.array_equal(stored[position], expected)


def test_training_pixels_keep_the_image_up_to_the_side(photographs, tmp_path):
    root, samples = photographs
    geometry = TrainGeometry(40, 3, "bilinear")
    store = Store(tmp_path / "cache", root, geometry, 3)
    store.build(root, samples, LIMIT, quiet)
    stored = store.open(samples)
    seen = set()
    for position, one in enumerate(samples):
        image = decode(root / one.path)
        pixels = stored[position]
        small = min(image.size) <= 40
        seen.add(small)
        if small:
            assert np.array_equal(pixels, np.asarray(image))
        else:
            assert min(pixels.shape[:2]) == 40
            reduced = image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
            assert np.array_equal(pixels, np.asarray(reduced))
    assert seen == {True, False}


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(1)
    rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = rough.resize((1600, 1200), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=95)
    content = (tmp_path / "large.jpg").read_bytes()
    pixels = TrainGeometry(128, 3, "bilinear").decode(content)
    whole = decode(tmp_path / "large.jpg").resize((171, 128), Image.Resampling.BILINEAR)
    assert pixels.shape == (128, 171, 3)
    difference = np.abs(pixels.astype(int) - np.asarray(whole).astype(int))
    assert difference.mean() < 1.0
    assert difference.max() <= 8


def test_the_side_leaves_room_for_crops():
    geometry = choose_train_geometry(PREPROCESSING, (0.35, 1.0))
    assert geometry.short_side == 39  # 32 / sqrt(0.675)
    assert choose_train_geometry(PREPROCESSING, (1.0, 1.0)).short_side == 32
    assert choose_train_geometry(PREPROCESSING, (0.08, 1.0)).short_side == 44


def test_a_long_strip_is_cut(tmp_path):
    write_image(tmp_path / "strip.png", (10, 20, 30), seed=0, size=4)
    Image.new("RGB", (1000, 4), "red").save(tmp_path / "strip.png")
    pixels = TrainGeometry(40, 3, "bilinear").decode((tmp_path / "strip.png").read_bytes())
    assert pixels.shape == (4, 32, 3)


def test_what_is_stored_is_not_decoded_again(photographs, tmp_path, monkeypatch):
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    assert store.build(root, samples, LIMIT, quiet).added == 12
    monkeypatch.setattr(EvalGeometry, "decode", lambda *_: pytest.fail("decoded again"))
    again = Store(tmp_path / "cache", root, GEOMETRY, 3)
    assert again.build(root, samples, LIMIT, quiet).added == 0
    assert list_known_contents(tmp_path / "cache", root) == {s.sha256 for s in samples}


def test_changed_added_and_removed_files_are_seen(photographs, tmp_path):
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    store.build(root, samples[:10], LIMIT, quiet)
    with pytest.raises(StoreUnavailable, match="lacks images"):
        store.open(samples)
    # One is changed, at the same size and time; one removed, two added.
    path = root / samples[0].path
    write_image(path, (1, 2, 3), seed=9, size=50)
    now = [sample(root, path.name), *samples[2:]]
    assert store.build(root, now, LIMIT, quiet).added == 3
    stored = store.open(now)
    assert np.array_equal(stored[0], GEOMETRY.decode(path.read_bytes()))
    assert len(stored) == 11


def test_a_change_while_building_is_an_error(photographs, tmp_path):
    root, samples = photographs
    write_image(root / samples[3].path, (1, 2, 3), seed=9)
    with pytest.raises(DataError, match="content has changed"):
        Store(tmp_path / "cache", root, GEOMETRY, 3).build(root, samples, LIMIT, quiet)
    (root / samples[3].path).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Store(tmp_path / "cache", root, GEOMETRY, 3).build(root, samples, LIMIT, quiet)


def test_another_geometry_has_pixels_of_its_own(photographs, tmp_path):
    root, samples = photographs
    other = EvalGeometry(Preprocessing((3, 48, 48), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.875))
    stores = [Store(tmp_path / "cache", root, g, 3) for g in (GEOMETRY, other)]
    for store in stores:
        store.build(root, samples, LIMIT, quiet)
    assert [store.open(samples)[0].shape for store in stores] == [(32, 32, 3), (48, 48, 3)]
    # Normalisation comes later, so other statistics share the pixels.
    same = EvalGeometry(Preprocessing((3, 32, 32), (0.1,) * 3, (0.9,) * 3, "bilinear", 0.875))
    assert Store(tmp_path / "cache", root, same, 3).folder == stores[0].folder


def test_a_crash_costs_what_was_not_flushed(photographs, tmp_path):
    """Torn files: half an entry, pixels without an entry, a damaged entry."""
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    store.build(root, samples, LIMIT, quiet)
    expected = [store.open(samples)[i].copy() for i in range(12)]
    index, pixels = store.folder / "index.bin", store.folder / "pixels.bin"
    whole = index.read_bytes()
    size = len(whole) // 12
    for damaged in (
        whole[: 7 * size + 11],  # torn within an entry
        whole[: 5 * size] + b"\x00" * size + whole[6 * size :],  # an entry that is not whole
        whole[: 5 * size] + whole[5 * size : 6 * size - 1] + b"\xff" + whole[6 * size :],
    ):
        index.write_bytes(damaged)
        with pytest.raises(StoreUnavailable):
            store.open(samples)
        assert 0 < store.build(root, samples, LIMIT, quiet).added < 12
        again = store.open(samples)
        assert all(np.array_equal(again[i], expected[i]) for i in range(12))
    with pixels.open("r+b") as stream:  # pixels that never reached the disk
        stream.truncate(pixels.stat().st_size // 2)
    assert store.build(root, samples, LIMIT, quiet).added >= 6
    again = store.open(samples)
    assert all(np.array_equal(again[i], expected[i]) for i in range(12))


BUILD = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_store import GEOMETRY, LIMIT, quiet, sample
from mnft.data.store.store import Store
root, cache = Path({root!r}), Path({cache!r})
samples = [sample(root, path.name) for path in sorted(root.iterdir())]
print(Store(cache, root, GEOMETRY, 3).build(root, samples, LIMIT, quiet).added)
"""
FORKS = """{before}
import multiprocessing
context = multiprocessing.get_context("fork")
together = context.Barrier(3)
def run():
    together.wait()
    {build}
forks = [context.Process(target=run) for _ in range(3)]
for fork in forks: fork.start()
for fork in forks: fork.join()
assert not any(fork.exitcode for fork in forks)
"""


def test_three_builders_at_once_do_the_work_once(tmp_path):
    root = tmp_path / "images"
    for number in range(60):
        write_image(root / f"{number:02d}.png", (number, 9, 9), seed=number, size=64)
    script = BUILD.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[2])],
        root=str(root),
        cache=str(tmp_path / "cache"),
    )
    # Forks of one process, so that torch is imported once, which begin at the same moment.
    before, build = script.strip().rsplit("\n", 1)
    forks = FORKS.format(before=before, build=build)
    done = subprocess.run(
        [sys.executable, "-c", forks], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(map(int, done.stdout.split())) == [0, 0, 60]
    samples = [sample(root, path.name) for path in sorted(root.iterdir())]
    stored = Store(tmp_path / "cache", root, GEOMETRY, 3).open(samples)
    for position, one in enumerate(samples):
        assert np.array_equal(stored[position], GEOMETRY.decode((root / one.path).read_bytes()))


def test_other_processes_map_the_file_instead_of_copying_it(photographs, tmp_path):
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    store.build(root, samples, LIMIT, quiet)
    stored = store.open(samples)
    first = stored[0].copy()
    content = pickle.dumps(stored)
    assert len(content) < stored.pixels.nbytes / 4
    assert np.array_equal(pickle.loads(content)[0], first)


def test_writing_to_an_image_does_not_reach_the_file(photographs, tmp_path):
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    store.build(root, samples, LIMIT, quiet)
    before = store.open(samples)[0].copy()
    store.open(samples)[0][:] = 0
    assert np.array_equal(store.open(samples)[0], before)


# --- room


def test_a_data_set_over_the_limit_is_refused_before_it_is_written(photographs, tmp_path):
    root, samples = photographs
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    with pytest.raises(StoreUnavailable, match=r"data\.store_limit_gb"):
        store.build(root, samples, 10_000, quiet)
    assert (store.folder / "pixels.bin").stat().st_size == 0


def test_a_full_disk_is_found_before_it_is_full(photographs, tmp_path, monkeypatch):
    root, samples = photographs
    monkeypatch.setattr(cache_module, "_free", lambda _: 1 << 29)
    with pytest.raises(StoreUnavailable, match="GB free"):
        Store(tmp_path / "cache", root, GEOMETRY, 3).build(root, samples, LIMIT, quiet)


def test_a_disk_that_fills_up_meanwhile(photographs, tmp_path):
    """A limit on the size of files stands for the full disk."""
    root, samples = photographs
    script = BUILD.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[2])],
        root=str(root),
        cache=str(tmp_path / "cache"),
    )
    limited = textwrap.dedent(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", limited + script], capture_output=True, text=True, timeout=120
    )
    assert "StoreUnavailable" in done.stderr
    # What is there can be built on.
    store = Store(tmp_path / "cache", root, GEOMETRY, 3)
    store.build(root, samples, LIMIT, quiet)
    assert np.array_equal(
        store.open(samples)[11], GEOMETRY.decode((root / samples[11].path).read_bytes())
    )


def test_the_store_used_longest_ago_makes_room(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    for number, name in enumerate(["old", "middle", "new"]):
        folder = cache / name / "geometry"
        folder.mkdir(parents=True)
        (folder / "pixels.bin").write_bytes(bytes(1000))
        (folder / "index.bin").write_bytes(b"")

        os.utime(folder / "index.bin", (number, number))
    keep = cache / "mine" / "geometry"
    assert make_room(cache, keep, 1500, 4000) is None
    assert [p.parent.name for p in sorted(cache.glob("*/geometry"))] == ["middle", "new"]
    assert "to make room" in caplog.text
    assert "store_limit_gb" in str(make_room(cache, keep, 5000, 4000))
    assert len(list(cache.glob("*/geometry"))) == 2


def test_a_folder_that_cannot_be_written(photographs, tmp_path):
    root, samples = photographs
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreUnavailable):
        Store(tmp_path / "cache", root, GEOMETRY, 3).build(root, samples, LIMIT, quiet)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "mine"))
    assert choose_cache_folder("auto") == tmp_path / "mine"
    assert choose_cache_folder("~/elsewhere") == Path.home() / "elsewhere"
    monkeypatch.delenv("MNFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert choose_cache_folder("auto") == tmp_path / "xdg" / "mnft"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert choose_cache_folder("auto") == tmp_path / ".cache" / "mnft"
