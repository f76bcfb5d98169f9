"""One finding of the check, and the input that all checks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnft.config.data import DataConfig
from mnft.data.decode import Inspection
from mnft.data.folder import FolderScan, ImageFile
from mnft.data.labels import LabelRules

if TYPE_CHECKING:  # SciPy, which it imports, would slow down every training
    from mnft.data.check.image_stats import CheckedFile


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that would spoil a training, or that a person should know.

    Attributes:
        kind: one of the kinds in docs/data-check.md.
        is_problem: whether the check fails because of it.
        message: what was found.
        paths: the files or folders that it is about.
        leave_out: those of `paths` that `--fix` leaves out.
        look_at: those of `paths` that `--fix` names for a person to decide on.
    """

    kind: str
    is_problem: bool
    message: str
    paths: tuple[str, ...]
    leave_out: tuple[str, ...] = ()
    look_at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingNeeds:
    """What a training needs of the images.

    Attributes:
        input_size: side of the model's input in pixels.
        is_balanced: whether the training makes up for classes of unequal size.
        is_grey: whether the model takes grey images.
    """

    input_size: int = 224
    is_balanced: bool = False
    is_grey: bool = False


@dataclass(frozen=True, slots=True)
class CheckInput:
    """What all checks get.

    Attributes:
        scan: the folder, without what the config excludes.
        files: what is known of each of its files, by path.
        config: how it will be split.
        needs: what a training needs of it.
        splits: the split that each readable file will be in, by path; None where that is unknown.
        rules: what the labels are.
    """

    scan: FolderScan
    files: Mapping[str, CheckedFile]
    config: DataConfig
    needs: TrainingNeeds
    splits: Mapping[str, str | None]
    rules: LabelRules

    def name_labels(self, image: ImageFile) -> str:
        """The labels of an image as a text, the same for equal ones."""
        return ";".join(sorted(self.rules.parse(image.label))) or f"no {self.rules.noun}"

    @property
    def readable(self) -> list[ImageFile]:
        """The images that decode."""
        return [i for i in self.scan.images if self.inspection(i).problem is None]

    def inspection(self, image: ImageFile) -> Inspection:
        """What training knows of a file."""
        return self.files[image.path].inspection
