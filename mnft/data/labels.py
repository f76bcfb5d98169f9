"""How a task reads the label of an image, which to the data layer is only a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mnft.data.folder import FolderScan, LeftOut
from mnft.errors import DataError
from mnft.text import count

if TYPE_CHECKING:
    from mnft.data.check.findings import CheckInput, Finding

    CheckLabels = Callable[[CheckInput, Mapping[str, Mapping[str, int]]], Iterable[Finding]]


# The label of images of none of the classes (data.other); it stands last among a model's labels.
OTHER = "_other"


@dataclass(frozen=True, slots=True)
class LabelRules:
    """What the labels of a task are.

    Attributes:
        task: name of the task.
        noun: what one label is called, such as "class".
        plural: what several are called.
        exclusive: whether each image has exactly one label.
        parse: the names of the labels that an image has, from its label text.
        check: the task's own data check; it gets the input of all checks, and the number of
            readable images with each label in each split.
    """

    task: str
    noun: str
    plural: str
    exclusive: bool
    parse: Callable[[str], tuple[str, ...]]
    check: CheckLabels

    def list_names(self, scan: FolderScan, split: str | None = None) -> list[str]:
        """Sorted names of the labels, of one split or of all; OTHER is none of them.

        Labels that the data set lists belong to every split, also where no image has them.
        """
        found = set(scan.names)
        for image in scan.images:
            if split is None or image.split == split:
                found.update(self.parse(image.label))
        return sorted(found - {OTHER})

    def describe(self, scan: FolderScan) -> str:
        """A data set in words: "1,600 images of 5 classes in train, val, test"."""
        where = f" in {', '.join(scan.splits)}" if scan.splits else ", not split"
        names = count(len(self.list_names(scan)), self.noun, self.plural)
        others = sum(image.label == OTHER for image in scan.images)
        none = f" and {count(others, 'image')} of none of them" if others else ""
        return f"{count(len(scan.images) - others, 'image')} of {names}{none}{where}"

    def apply(self, scan: FolderScan) -> FolderScan:
        """Set images without a label apart where each must have one.

        Raises:
            DataError: the labels are for another task.
        """
        if scan.task not in {self.task, "classify"}:
            raise DataError(
                f"{scan.source}: its labels are for task: {scan.task}, but the task is {self.task}",
                hint=f"write `task: {scan.task}` into the config",
                key="task",
            )
        if not self.exclusive:
            return scan
        empty = [
            LeftOut(image.path, f"{scan.source.name}, line {image.line}: no {self.noun}")
            for image in scan.images
            if not image.label
        ]
        images = tuple(image for image in scan.images if image.label)
        return replace(scan, images=images, unusable=(*scan.unusable, *empty))
