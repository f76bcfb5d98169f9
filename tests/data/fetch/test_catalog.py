"""Each published layout, in miniature: right classes, splits and images, and nothing half done."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from support.reporting import Recorder

from mnft.data.fetch import archive, catalog
from mnft.data.fetch.archive import RemoteFile
from mnft.data.fetch.layouts import readable
from mnft.data.fetch.table import SPECS, DatasetSpec
from mnft.errors import ConfigError, DataError

Files = dict[str, bytes]


@dataclass
class Miniature:
    """A data set as published, but tiny: its archives, and the image folder it must become."""

    archives: dict[str, Files | bytes]  # the files of an archive, or a plain file
    expected: Files  # path in the image folder: bytes of the file, or pixels where it is written
    num_classes: int
    split_sizes: dict[str | None, int]


def cifar_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def cifar_file(records: list[tuple[tuple[int, ...], int]]) -> bytes:
    return b"".join(
        bytes(labels) + cifar_pixels(number).transpose(2, 0, 1).tobytes()
        for labels, number in records
    )


def mat_file(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def flowers102() -> Miniature:
    labels = [60, 1, 102, 1, 60, 102, 1]
    splits = {"trnid": [3, 1], "valid": [2], "tstid": [7, 4, 6, 5]}
    return Miniature(
        {
            "102flowers.tgz": {f"jpg/image_{n:05d}.jpg": b"image %d" % n for n in range(1, 8)},
            "imagelabels.mat": mat_file(labels=np.array([labels], dtype=np.uint8)),
            "setid.mat": mat_file(
                **{key: np.array([ids], dtype=np.uint16) for key, ids in splits.items()}
            ),
        },
        {
            "train/blackberry lily/image_00003.jpg": b"image 3",
            "train/pink-yellow dahlia/image_00001.jpg": b"image 1",
            "val/pink primrose/image_00002.jpg": b"image 2",
            "test/pink primrose/image_00007.jpg": b"image 7",
            "test/pink primrose/image_00004.jpg": b"image 4",
            "test/blackberry lily/image_00006.jpg": b"image 6",
            "test/pink-yellow dahlia/image_00005.jpg": b"image 5",
        },
        3,
        {"train": 2, "val": 1, "test": 4},
    )


def flower_photos() -> Miniature:
    classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    photos = {f"{name}/{n}_m.jpg": f"{name} {n}".encode() for name in classes for n in range(2)}
    extra = {"LICENSE.txt": b"by many", "daisy/._0_m.jpg": b"left by a Mac"}
    return Miniature(
        {"flower_photos.tgz": {f"flower_photos/{k}": v for k, v in (photos | extra).items()}},
        photos | {"LICENSE.txt": b"by many"},
        5,
        {None: 10},
    )


def cifar10() -> Miniature:
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    labels = {"train": [3, 0, 9, 9, 1], "test": [0, 3]}
    files = {f"data_batch_{n + 1}.bin": [((label,), n)] for n, label in enumerate(labels["train"])}
    files["test_batch.bin"] = [((label,), 100 + n) for n, label in enumerate(labels["test"])]
    content = {name: cifar_file(records) for name, records in files.items()}
    content["batches.meta.txt"] = "\n".join(names).encode() + b"\n\n"
    return Miniature(
        {"cifar-10-binary.tar.gz": {f"cifar-10-batches-bin/{k}": v for k, v in content.items()}},
        {
            f"{split}/{names[label]}/{n:05d}.png": cifar_pixels(first + n).tobytes()
            for split, first in (("train", 0), ("test", 100))
            for n, label in enumerate(labels[split])
        },
        4,
        {"train": 5, "test": 2},
    )


def cifar100() -> Miniature:
    content = {
        "coarse_label_names.txt": b"fish\nflowers\n",
        "fine_label_names.txt": b"apple\naquarium_fish\nbaby\n",
        "train.bin": cifar_file([((0, 1), 0), ((1, 0), 1), ((1, 2), 2)]),
        "test.bin": cifar_file([((1, 2), 3)]),
    }
    return Miniature(
        {"cifar-100-binary.tar.gz": {f"cifar-100-binary/{k}": v for k, v in content.items()}},
        {
            "train/aquarium fish/00000.png": cifar_pixels(0).tobytes(),
            "train/apple/00001.png": cifar_pixels(1).tobytes(),
            "train/baby/00002.png": cifar_pixels(2).tobytes(),
            "test/baby/00000.png": cifar_pixels(3).tobytes(),
        },
        3,
        {"train": 3, "test": 1},
    )


def pets() -> Miniature:
    ids = ["Abyssinian_1", "american_pit_bull_terrier_20", "Abyssinian_2", "wheaten_terrier_3"]
    unused = {"images/Abyssinian_9.jpg": b"in no list", "images/Abyssinian_1.mat": b"not an image"}
    return Miniature(
        {
            "images.tar.gz": {f"images/{i}.jpg": i.encode() for i in ids} | unused,
            "annotations.tar.gz": {
                "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n",
                "annotations/trainval.txt": b"Abyssinian_1 1 1 1\n"
                b"american_pit_bull_terrier_20 3 2 2\nwheaten_terrier_3 36 2 24\n",
                "annotations/test.txt": b"#a comment\nAbyssinian_2 1 1 1\n",
            },
        },
        {
            "train/Abyssinian/Abyssinian_1.jpg": b"Abyssinian_1",
            "train/American Pit Bull Terrier/american_pit_bull_terrier_20.jpg": ids[1].encode(),
            "train/Wheaten Terrier/wheaten_terrier_3.jpg": b"wheaten_terrier_3",
            "test/Abyssinian/Abyssinian_2.jpg": b"Abyssinian_2",
        },
        3,
        {"train": 3, "test": 1},
    )


def food101() -> Miniature:
    entries = ["apple_pie/100", "apple_pie/200", "waffles/100", "waffles/300"]
    content = {f"images/{entry}.jpg": entry.encode() for entry in entries}
    content["meta/train.txt"] = b"apple_pie/200\nwaffles/100\nwaffles/300"
    content["meta/test.txt"] = b"apple_pie/100\n"
    return Miniature(
        {"food-101.tar.gz": {f"food-101/{k}": v for k, v in content.items()}},
        {
            "train/apple pie/200.jpg": b"apple_pie/200",
            "train/waffles/100.jpg": b"waffles/100",
            "train/waffles/300.jpg": b"waffles/300",
            "test/apple pie/100.jpg": b"apple_pie/100",
        },
        2,
        {"train": 3, "test": 1},
    )


MINIATURES: dict[str, Callable[[], Miniature]] = {
    f.__name__: f for f in (flowers102, flower_photos, cifar10, cifar100, pets, food101)
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(params=list(MINIATURES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def publish(
    name: str,
    folder: Path,
    url: str = "http://127.0.0.1:9",
    changed: dict[str, bytes | None] | None = None,
) -> tuple[DatasetSpec, Miniature]:
    """Write the archives of a miniature, and give the data set that expects just these.

    Files of `changed` have other content in their archive, or are missing there.
    """
    mini = MINIATURES[name]()
    for path, data in (changed or {}).items():
        files = next(c for c in mini.archives.values() if isinstance(c, dict) and path in c)
        del files[path]
        files.update({} if data is None else {path: data})
    folder.mkdir()
    for file_name, content in mini.archives.items():
        if isinstance(content, bytes):
            (folder / file_name).write_bytes(content)
            continue
        # the archives of pets are plain tar in spite of their ending
        with tarfile.open(folder / file_name, "w" if name == "pets" else "w:gz") as tar:
            for path, data in content.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    published = SPECS[name]
    assert {file.file_name for file in published.files} == set(mini.archives)
    spec = replace(
        published,
        num_classes=mini.num_classes,
        split_sizes=mini.split_sizes,
        files=tuple(local(folder / file.file_name, url) for file in published.files),
    )
    return spec, mini


def local(path: Path, url: str) -> RemoteFile:
    content = path.read_bytes()
    return RemoteFile(f"{url}/{path.name}", len(content), hashlib.sha256(content).hexdigest())


def read_tree(folder: Path) -> Files:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): content(path) for path in files}


def content(path: Path) -> bytes:
    if path.suffix != ".png":
        return path.read_bytes()
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
        return image.tobytes()


def assert_untouched(tmp_path: Path, *allowed: str) -> None:
    assert {path.name for path in tmp_path.iterdir()} <= {*allowed, "cache"}


def test_becomes_an_image_folder(name, tmp_path):
    spec, mini = publish(name, tmp_path / "given")
    before = read_tree(tmp_path / "given")
    recorder = Recorder()
    destination = catalog.fetch(
        spec, tmp_path / "deep" / "out", source=tmp_path / "given", reporter=recorder
    )
    assert read_tree(destination) == mini.expected
    assert read_tree(tmp_path / "given") == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    total = sum(mini.split_sizes.values())
    assert recorder.seen[-1] == ("writing images", total, total)
    assert {what.split()[0] for what, *_ in recorder.seen} == {"checking", "unpacking", "writing"}


def test_from_one_file_finds_the_others_beside_it(name, tmp_path):
    spec, mini = publish(name, tmp_path / "given")
    one = tmp_path / "given" / spec.files[0].file_name
    assert read_tree(catalog.fetch(spec, tmp_path / "out", source=one)) == mini.expected


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "given"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_from_the_network_and_again_from_the_cache(name, tmp_path, served):
    spec, mini = publish(name, tmp_path / "given", served)
    assert read_tree(catalog.fetch(spec, tmp_path / "out")) == mini.expected
    cached = sorted(path.name for path in (tmp_path / "cache" / "downloads" / name).iterdir())
    assert cached == sorted(mini.archives)
    for path in (tmp_path / "given").iterdir():
        path.unlink()
    assert read_tree(catalog.fetch(spec, tmp_path / "again")) == mini.expected


def test_an_interrupted_fetch_goes_on(tmp_path, served):
    spec, mini = publish("food101", tmp_path / "given", served)

    def interrupt(what: str, _done: int) -> None:
        if what.startswith("writing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.fetch(spec, tmp_path / "out", reporter=Recorder(interrupt))
    assert_untouched(tmp_path, "given")
    assert read_tree(catalog.fetch(spec, tmp_path / "out")) == mini.expected


def test_without_network_one_error_says_what_to_do(name, tmp_path):
    spec, _ = publish(name, tmp_path / "given")
    with pytest.raises(DataError, match=r"could not download http://127\.0\.0\.1:9/") as e:
        catalog.fetch(spec, tmp_path / "out")
    for file in spec.files:
        assert file.url in e.value.hint
    file = spec.files[0].file_name if len(spec.files) == 1 else "FOLDER"
    assert f"mnft data fetch {name} --from {file}" in e.value.hint
    assert_untouched(tmp_path, "given")


def test_a_changed_archive_is_named_with_both_checksums(name, tmp_path):
    spec, _ = publish(name, tmp_path / "given")
    path = tmp_path / "given" / spec.files[-1].file_name
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(DataError) as e:
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert spec.files[-1].sha256 in e.value.message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in e.value.message
    assert path.exists()
    assert_untouched(tmp_path, "given")


def test_one_of_several_archives_is_missing(tmp_path):
    spec, _ = publish("flowers102", tmp_path / "given")
    (tmp_path / "given" / "setid.mat").unlink()
    with pytest.raises(DataError, match=r"setid\.mat is missing beside"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given" / "102flowers.tgz")
    with pytest.raises(DataError, match=r"setid\.mat is missing in"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert_untouched(tmp_path, "given")


def test_no_such_source(tmp_path):
    with pytest.raises(DataError, match="absent: no such file or folder"):
        catalog.fetch("cifar10", tmp_path / "out", source=tmp_path / "absent")


def test_a_listed_image_that_is_missing(tmp_path):
    missing: dict[str, bytes | None] = {"images/wheaten_terrier_3.jpg": None}
    spec, _ = publish("pets", tmp_path / "given", changed=missing)
    with pytest.raises(DataError, match=r"wheaten_terrier_3\.jpg: the image is listed but not"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert_untouched(tmp_path, "given")


def test_an_archive_that_is_not_complete(tmp_path):
    missing: dict[str, bytes | None] = {"flower_photos/roses/1_m.jpg": None}
    spec, _ = publish("flower_photos", tmp_path / "given", changed=missing)
    with pytest.raises(DataError, match="expected 10 images in 5 classes, found 9 images in 5"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert_untouched(tmp_path, "given")


def test_the_split_is_checked_and_not_only_the_sum(tmp_path):
    lists: dict[str, bytes | None] = {
        "food-101/meta/train.txt": b"apple_pie/200\nwaffles/100\n",
        "food-101/meta/test.txt": b"apple_pie/100\nwaffles/300\n",
    }
    spec, _ = publish("food101", tmp_path / "given", changed=lists)
    with pytest.raises(DataError, match=r"expected 3 train \+ 1 test images .* 2 train \+ 2 test"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")


@pytest.mark.parametrize(
    "entry", ["../../secret", "/secret", "pie/../../../secret", "pie/..//secret"]
)
def test_a_list_that_points_outside(tmp_path, entry):
    (tmp_path / "secret.jpg").write_bytes(b"not yours")
    listed: dict[str, bytes | None] = {"food-101/meta/train.txt": f"{entry}\n".encode()}
    spec, _ = publish("food101", tmp_path / "given", changed=listed)
    what = "lies outside" if entry.startswith("pie") else "cannot be a class name|lies outside"
    with pytest.raises(DataError, match=what):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert_untouched(tmp_path, "given", "secret.jpg")


def test_an_image_listed_twice(tmp_path):
    # The first time moves the file, so a second time does not find it.
    listed: dict[str, bytes | None] = {"food-101/meta/train.txt": b"waffles/100\n" * 3}
    spec, _ = publish("food101", tmp_path / "given", changed=listed)
    with pytest.raises(DataError, match=r"100\.jpg: the image is listed but not there"):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (cifar_file([((3,), 0)])[:-1], "not a whole number of 3073-byte records"),
        (cifar_file([((10,), 0)]), "label 10, but there are 10 classes"),
    ],
)
def test_a_cifar_file_of_the_wrong_shape(tmp_path, data, message):
    changed: dict[str, bytes | None] = {"cifar-10-batches-bin/data_batch_2.bin": data}
    spec, _ = publish("cifar10", tmp_path / "given", changed=changed)
    with pytest.raises(DataError, match=message):
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")


def test_digits_are_those_of_scikit_learn(tmp_path):
    digits = load_digits()
    folder = catalog.fetch("digits", tmp_path / "digits")
    assert sorted(path.name for path in folder.iterdir()) == [str(n) for n in range(10)]
    found = {path.stem: path for path in folder.glob("*/*.png")}
    assert len(found) == 1797
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = found[f"{index:04d}"]
        assert path.parent.name == str(label)
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (8, 8))
            pixels = np.asarray(picture)
        np.testing.assert_array_equal(pixels, np.rint(image / 16 * 255))
    again = catalog.fetch("digits", tmp_path / "again")
    assert all(
        path.read_bytes() == (again / path.relative_to(folder)).read_bytes()
        for path in found.values()
    )
    assert_untouched(tmp_path, "digits", "again")


def test_digits_take_no_source(tmp_path):
    with pytest.raises(ConfigError, match="nothing to give --from"):
        catalog.fetch("digits", tmp_path / "out", source=tmp_path)


def test_an_empty_destination_is_filled(tmp_path):
    spec, mini = publish("food101", tmp_path / "given")
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    catalog.fetch(spec, tmp_path / "link", source=tmp_path / "given")
    assert read_tree(tmp_path / "out") == mini.expected


def test_a_destination_in_use_is_left_alone(tmp_path):
    spec, _ = publish("food101", tmp_path / "given")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty") as e:
        catalog.fetch(spec, tmp_path / "out", source=tmp_path / "given")
    assert "a folder that does not exist" in e.value.hint
    with pytest.raises(DataError, match="is not a folder"):
        catalog.fetch(spec, tmp_path / "out" / "mine.txt", source=tmp_path / "given")
    assert read_tree(tmp_path / "out") == {"mine.txt": b"mine"}


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    spec, _ = publish("food101", tmp_path / "given")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"could not fetch food101: .*file"):
        catalog.fetch(spec, tmp_path / "file" / "out", source=tmp_path / "given")
    monkeypatch.setenv("MNFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"could not fetch food101: .*file") as e:
        catalog.fetch(spec, tmp_path / "out")
    assert "free some space" in e.value.hint
    assert_untouched(tmp_path, "given", "file")


def test_unknown_names():
    with pytest.raises(ConfigError, match="unknown data set 'CIFAR-10'; did you mean cifar10") as e:
        catalog.describe("CIFAR-10")
    assert all(name in e.value.hint for name in catalog.names())
    with pytest.raises(ConfigError, match=r"unknown data set 'imagenet'$"):
        catalog.fetch("imagenet", Path("never"))


def test_the_table():
    assert catalog.names() == (
        ["digits", "flowers102", "flower_photos", "cifar10", "cifar100", "pets", "food101"]
    )
    images = {name: catalog.describe(name).num_images for name in catalog.names()}
    assert images == {
        "digits": 1797,
        "flowers102": 8189,
        "flower_photos": 3670,
        "cifar10": 60_000,
        "cifar100": 60_000,
        "pets": 7349,
        "food101": 101_000,
    }
    for spec in SPECS.values():
        for file in spec.files:
            assert file.url.startswith(("https://", "http://"))
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.sha256 == file.sha256.lower()
            assert file.num_bytes < archive.MAX_UNPACKED_BYTES


def test_describe():
    flowers = catalog.describe("flowers102")
    assert (flowers.num_classes, flowers.splits) == (102, "train 1,020, val 1,020, test 6,149")
    assert flowers.download_mb == pytest.approx(344.9)
    assert len(flowers.sources) == 3
    digits = catalog.describe("digits")
    assert (digits.download_mb, digits.sources) == (0, ())
    assert digits.splits.startswith("none")


@pytest.mark.parametrize(
    ("label", "flower"),
    [
        (1, "pink primrose"),
        (12, "colt's foot"),
        (21, "fire lily"),
        (60, "pink-yellow dahlia"),
        (74, "rose"),
        (102, "blackberry lily"),
    ],
)
def test_flower_names_stand_at_their_label(label, flower):
    from torchvision.datasets import Flowers102

    names = [readable(name) for name in Flowers102.classes]
    assert names[label - 1] == flower
    assert len(set(names)) == 102


def test_readable_names():
    assert readable("aquarium_fish") == "aquarium fish"
    assert readable("what?/../else") == "what..else"
    with pytest.raises(DataError, match="cannot be a class name"):
        readable("..")
