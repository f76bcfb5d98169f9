"""How each published data set becomes an image folder: what lies where, under which class name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from mnft.errors import DataError
from mnft.reporter import Progress

_REPORT_EVERY = 100
_CIFAR_SIDE = 32
_CIFAR_PIXEL_BYTES = 3 * _CIFAR_SIDE * _CIFAR_SIDE


class ImageFolderWriter:
    """Fills `root/[split/]class/` and counts what it puts there.

    Args:
        root: the new image folder.
        total: how many images are expected.
        on_progress: a function that is called with the images done and `total`.

    Attributes:
        root: the new image folder.
        counts: number of images in each split; under None where the data set has no split.
        class_names: the classes that have an image.
    """

    def __init__(self, root: Path, *, total: int, on_progress: Progress) -> None:
        self.root = root
        self.counts: Counter[str | None] = Counter()
        self.class_names: set[str] = set()
        self._total, self._on_progress = total, on_progress

    def place(self, image: Path, split: str | None, class_name: str) -> None:
        """Move an image file into its class.

        Raises:
            DataError: there is no such file, or its class has one of that name already.
        """
        if not image.is_file():
            raise DataError(
                f"{image}: the image is listed but not there",
                hint="the archive is not complete; fetch it again",
            )
        image.rename(self._add(split, class_name, image.name))

    def save_png(self, pixels: Any, split: str | None, class_name: str, name: str) -> None:
        """Write pixels, (H, W) grey or (H, W, 3) RGB uint8, as `name`.png; same pixels, same bytes.

        Raises:
            DataError: the class has an image of that name already.
        """
        from PIL import Image

        Image.fromarray(pixels).save(self._add(split, class_name, f"{name}.png"), format="PNG")

    def _add(self, split: str | None, class_name: str, name: str) -> Path:
        """Count an image, and give the path where it goes."""
        folder = self.root / (split or "") / class_name
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            raise DataError(f"{name}: found twice in the class {class_name!r}")
        self.counts[split] += 1
        self.class_names.add(class_name)
        done = self.counts.total()
        if done % _REPORT_EVERY == 0 or done == self._total:
            self._on_progress(done, self._total)
        return folder / name


def digits(_base: Path, writer: ImageFolderWriter) -> None:
    """The digits inside scikit-learn: 8x8, values 0..16 spread over 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    for index, (image, label) in enumerate(zip(images, data.target, strict=True)):
        writer.save_png(image, None, str(label), f"{index:04d}")


def flowers102(base: Path, writer: ImageFolderWriter) -> None:
    """`jpg/image_00001.jpg`..., a label 1..102 for each, and the three lists of image numbers."""
    import numpy as np
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    # label n is the n-th name: checked by class counts and by eye in tensorflow/datasets#1641,
    # and again in pytorch/vision#8838, from which torchvision has this list
    names = [readable(name) for name in Flowers102.classes]
    labels = np.atleast_1d(loadmat(base / "imagelabels.mat", squeeze_me=True)["labels"])
    numbers = loadmat(base / "setid.mat", squeeze_me=True)
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for number in np.atleast_1d(numbers[key]).tolist():
            image = base / "jpg" / f"image_{number:05d}.jpg"
            writer.place(image, split, names[int(labels[number - 1]) - 1])


def flower_photos(base: Path, writer: ImageFolderWriter) -> None:
    """One folder a class, and LICENSE.txt that credits the photographers."""
    for folder in sorted(base.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            for image in sorted(folder.glob("[!.]*.jpg")):
                writer.place(image, None, readable(folder.name))
    (base / "LICENSE.txt").rename(writer.root / "LICENSE.txt")


def cifar10(base: Path, writer: ImageFolderWriter) -> None:
    """Five training files and a test file; a record is the label and 3072 pixel bytes."""
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    names = _class_lines(base / "batches.meta.txt")
    _save_cifar(base, writer, names=names, split="train", files=batches, label_bytes=1)
    _save_cifar(base, writer, names=names, split="test", files=["test_batch.bin"], label_bytes=1)


def cifar100(base: Path, writer: ImageFolderWriter) -> None:
    """A record is the coarse label, the fine label, which is the class, and 3072 pixel bytes."""
    names = _class_lines(base / "fine_label_names.txt")
    for split in ("train", "test"):
        _save_cifar(base, writer, names=names, split=split, files=[f"{split}.bin"], label_bytes=2)


def pets(base: Path, writer: ImageFolderWriter) -> None:
    """`images/Some_Breed_1.jpg`; the lists name the image first, and the image names the breed."""
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        for line in _lines(base / "annotations" / file):
            image_id = line.split()[0]
            # dogs are written in small letters, cats are not
            breed = readable(image_id.rpartition("_")[0]).title()
            writer.place(_listed(base / "images", f"{image_id}.jpg"), split, breed)


def food101(base: Path, writer: ImageFolderWriter) -> None:
    """`images/apple_pie/1005649.jpg`; the lists hold such paths without the extension."""
    for split in ("train", "test"):
        for entry in _lines(base / "meta" / f"{split}.txt"):
            class_name = readable(entry.partition("/")[0])
            writer.place(_listed(base / "images", f"{entry}.jpg"), split, class_name)


def readable(name: str) -> str:
    """A class name that a person reads and that every file system takes as a folder.

    Raises:
        DataError: nothing is left of the name.
    """
    words = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "", name.replace("_", " ")).strip(" .")
    if not words:
        raise DataError(f"{name!r} cannot be a class name")
    return words


def _save_cifar(
    base: Path,
    writer: ImageFolderWriter,
    *,
    names: list[str],
    split: str,
    files: list[str],
    label_bytes: int,
) -> None:
    import numpy as np

    index, record_bytes = 0, label_bytes + _CIFAR_PIXEL_BYTES
    for file in files:
        path = base / file
        data = np.fromfile(path, dtype=np.uint8)
        if data.size % record_bytes:
            raise DataError(
                f"{path}: {data.size:,} bytes are not a whole number of {record_bytes}-byte records"
            )
        for record in data.reshape(-1, record_bytes):
            label = int(record[label_bytes - 1])
            if label >= len(names):
                raise DataError(f"{path}: label {label}, but there are {len(names)} classes")
            # The red, the green and the blue plane, each row by row.
            planes = record[label_bytes:].reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
            pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
            writer.save_png(pixels, split, names[label], f"{index:05d}")
            index += 1


def _class_lines(path: Path) -> list[str]:
    return [readable(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """The lines that say something; `#` opens a comment in the lists of pets."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _listed(folder: Path, entry: str) -> Path:
    path = PurePosixPath(entry)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{entry!r} is listed as an image but lies outside {folder}")
    return folder / path
