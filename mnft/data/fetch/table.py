"""The table of data sets that can be fetched: sizes, addresses, checksums, terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mnft.data.fetch import layouts
from mnft.data.fetch.archive import RemoteFile
from mnft.data.fetch.layouts import ImageFolderWriter


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: the name that is typed after `mnft data fetch`.
        title: a line that says what it is.
        terms: licence, or what the authors say about use.
        num_classes: number of classes.
        split_sizes: number of images in each official split; under None where there is no split.
        layout: a function that turns the unpacked files into an image folder.
        files: what is downloaded; empty where the data comes with an installed package.
        top: the folder inside the archives that holds the files; empty where there is none.
    """

    name: str
    title: str
    terms: str
    num_classes: int
    split_sizes: Mapping[str | None, int]
    layout: Callable[[Path, ImageFolderWriter], None]
    files: tuple[RemoteFile, ...] = ()
    top: str = ""

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(self.split_sizes.values())


# Sizes and SHA-256 are those of the checksum files of tensorflow-datasets 4.9.10:
# datasets/{oxford_flowers102,tf_flowers,oxford_iiit_pet}/checksums.tsv and
# url_checksums/{cifar10,cifar100,food101}.txt.
_SPECS = (
    DatasetSpec(
        name="digits",
        title="Handwritten digits, 8x8 grey, as inside scikit-learn",
        terms="UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), CC BY 4.0",
        num_classes=10,
        split_sizes={None: 1797},
        layout=layouts.digits,
    ),
    DatasetSpec(
        name="flowers102",
        title="Oxford 102 Flowers",
        terms="no licence stated, photographs from the web; cite Nilsback and Zisserman 2008",
        num_classes=102,
        split_sizes={"train": 1020, "val": 1020, "test": 6149},
        layout=layouts.flowers102,
        files=(
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                344_862_509,
                "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            ),
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
                502,
                "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            ),
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat",
                14_989,
                "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
            ),
        ),
    ),
    DatasetSpec(
        name="flower_photos",
        title="TensorFlow's photographs of five flowers",
        terms="CC BY 2.0; the photographers are named in LICENSE.txt, which is kept",
        num_classes=5,
        split_sizes={None: 3670},
        layout=layouts.flower_photos,
        files=(
            RemoteFile(
                "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
                228_813_984,
                "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
        top="flower_photos",
    ),
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10, 32x32 colour",
        terms="no licence stated; cite Krizhevsky 2009",
        num_classes=10,
        split_sizes={"train": 50_000, "test": 10_000},
        layout=layouts.cifar10,
        files=(
            RemoteFile(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        top="cifar-10-batches-bin",
    ),
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100, 32x32 colour, the 100 fine classes",
        terms="no licence stated; cite Krizhevsky 2009",
        num_classes=100,
        split_sizes={"train": 50_000, "test": 10_000},
        layout=layouts.cifar100,
        files=(
            RemoteFile(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        top="cifar-100-binary",
    ),
    DatasetSpec(
        name="pets",
        title="Oxford-IIIT Pet, breeds of cats and dogs",
        terms="CC BY-SA 4.0; cite Parkhi, Vedaldi, Zisserman and Jawahar 2012",
        num_classes=37,
        split_sizes={"train": 3680, "test": 3669},
        layout=layouts.pets,
        files=(
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                791_918_971,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            ),
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                19_173_078,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            ),
        ),
    ),
    DatasetSpec(
        name="food101",
        title="Food-101, dishes; the training labels are partly wrong, on purpose",
        terms="photographs from Foodspotting, scientific fair use only; cite Bossard et al. 2014",
        num_classes=101,
        split_sizes={"train": 75_750, "test": 25_250},
        layout=layouts.food101,
        files=(
            RemoteFile(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                4_996_278_331,
                "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            ),
        ),
        top="food-101",
    ),
)
SPECS: Mapping[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}
