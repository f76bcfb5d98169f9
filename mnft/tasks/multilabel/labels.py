"""What the labels of an image are: names separated by semicolons, some of them unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mnft.data.labels import LabelRules

if TYPE_CHECKING:
    from mnft.data.check.findings import CheckInput, Finding

SEPARATOR = ";"
_UNKNOWN = "?"


def read_label(label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the label text of an image, such as "beard;?hat"; all other labels are absent.

    Args:
        label: names separated by semicolons; one that begins with a question mark is unknown for
            this image. The empty text is an image without any label.

    Returns:
        The names of the labels that are present, and of those that are unknown, each once. A name
        that is both is present.
    """
    names = dict.fromkeys(filter(None, (name.strip() for name in label.split(SEPARATOR))))
    present = tuple(name for name in names if not name.startswith(_UNKNOWN))
    unknown = (name.removeprefix(_UNKNOWN).strip() for name in names if name.startswith(_UNKNOWN))
    return present, tuple(name for name in unknown if name and name not in present)


def parse(label: str) -> tuple[str, ...]:
    """The names of the labels that an image has."""
    return read_label(label)[0]


def _check(data: CheckInput, counts: Mapping[str, Mapping[str, int]]) -> Iterable[Finding]:
    # Imported late: training reads labels too, and the checks import SciPy.
    from mnft.tasks.multilabel.checks import check_labels

    return check_labels(data, counts)


RULES = LabelRules(
    task="multilabel",
    noun="label",
    plural="labels",
    exclusive=False,
    parse=parse,
    check=_check,
)
