"""One thing that the check found, and what all checks look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mnft.config.schema import DataConfig
from mnft.data.check.examine import Examined
from mnft.data.decode import Inspection
from mnft.data.folder import FolderScan, ImageFile


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that would spoil a training, or that a person should know.

    Attributes:
        kind: as docs/data-check.md lists them.
        is_problem: whether the check fails for it.
        message: what was found.
        paths: files or folders that it is about.
        leave_out: of these, what `--fix` leaves out.
        look_at: of these, what `--fix` names for a person to decide on.
    """

    kind: str
    is_problem: bool
    message: str
    paths: tuple[str, ...]
    leave_out: tuple[str, ...] = ()
    look_at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a training makes of the images.

    Attributes:
        input_size: side of the model's input in pixels.
        is_balanced: classes of unequal size are evened out.
        is_grey: the model takes grey images.
    """

    input_size: int = 224
    is_balanced: bool = False
    is_grey: bool = False


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to check.

    Attributes:
        scan: the folder, without what the config excludes.
        examined: every file of it, by path.
        config: how it will be split.
        expected: what a training makes of it.
        splits: the split that each readable file will be in, by path; None where it cannot be told.
    """

    scan: FolderScan
    examined: Mapping[str, Examined]
    config: DataConfig
    expected: Expectations
    splits: Mapping[str, str | None]

    @property
    def readable(self) -> list[ImageFile]:
        """The images that decode."""
        return [i for i in self.scan.images if self.inspection(i).problem is None]

    def inspection(self, image: ImageFile) -> Inspection:
        """What training knows of a file."""
        return self.examined[image.path].inspection
