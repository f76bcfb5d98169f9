"""What a report shows, as data: a verdict, and panels of text, tables, charts and pictures.

Tasks and the report's own panels build these records; `mnft.report` turns them into a page and a
model card. Nothing here knows HTML, and all text may come from others: the page escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

Entry = TypeVar("Entry")


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: what its column is sorted by, where that is a number; such columns stand right.
        bar: length of a bar behind the text, in [0, 1]; None for no bar.
        low: lower end of an interval that is drawn on the bar, in [0, 1].
        high: upper end of that interval.
        link: key of the pictures of the page that the cell leads to.
        label: what the link is called for those who do not see the table.
    """

    text: str
    value: float | None = None
    bar: float | None = None
    low: float | None = None
    high: float | None = None
    link: str | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        text: one or more sentences.
        kind: "missing" stands for what was not measured, "warning" for what is not right.
        command: the command line that makes what is missing, or that helps.
    """

    text: str
    kind: Literal["plain", "good", "warning", "missing"] = "plain"
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Attributes:
        title: what it shows.
        headings: headings of the columns.
        rows: cells, or plain texts.
        sortable: whether a reader can sort it.
        folded: whether it is closed until a reader opens it.
        in_card: whether the model card has it too.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    sortable: bool = False
    folded: bool = False
    in_card: bool = False


class Point(NamedTuple):
    """A point of a chart, with the ends of an interval of y and a name where it has them."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a chart that belong together.

    Attributes:
        name: what the legend calls it.
        points: the points, in the order of the line.
        line: whether a line joins them.
        marks: whether each has a mark.
        named: whether the name of each stands beside it.
    """

    name: str
    points: Sequence[Point]
    line: bool = True
    marks: bool = True
    named: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines and points between two axes; its numbers also stand in a table below it.

    Attributes:
        title: what it shows.
        x: what the horizontal axis shows, with its unit.
        y: what the vertical axis shows, with its unit.
        series: lines and points, at most six of them.
        percent: whether y, and x too if `diagonal`, is a fraction to show in percent.
        diagonal: whether to draw the line where both are equal; both axes then go from 0 to 1.
        log_x: whether the horizontal axis is logarithmic.
        mark: an x to mark with a line, and what it is.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    percent: bool = False
    diagonal: bool = False
    log_x: bool = False
    mark: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts of pairs, one row and one column a label.

    Attributes:
        title: what it shows.
        rows: what the rows are, such as "true".
        columns: what the columns are, such as "predicted".
        labels: K names.
        cells: K rows of K cells; `bar` is the fraction of the row, and sets the colour.
    """

    title: str
    rows: str
    columns: str
    labels: Sequence[str]
    cells: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a gallery.

    Attributes:
        path: the file, relative to the folder of the images.
        group: key by which a gallery is filtered, and cells of tables lead here.
        answer: what the model says.
        sure: how sure it is, in [0, 1].
        label: what the data set says.
        more: further text, such as the probability of that label.
        output: index of the output whose heat map is shown; None for no heat map.
    """

    path: str
    group: str
    answer: str
    sure: float
    label: str
    more: str = ""
    output: int | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures with what the model said of them.

    Attributes:
        title: what they have in common.
        pictures: the pictures, in order.
        groups: name of each group that has a picture here, and the number of all its images.
        total: number of all such images.
    """

    title: str
    pictures: Sequence[Picture]
    groups: Mapping[str, tuple[str, int]]
    total: int


@dataclass(frozen=True, slots=True)
class Chooser:
    """What a threshold on the confidence keeps, and how good that is.

    Attributes:
        title: what is chosen.
        total: number of images.
        steps: threshold, number of images kept, and number of these that are right; ascending.
    """

    title: str
    total: int
    steps: Sequence[tuple[float, int, int]]


Block = Text | Table | Chart | Matrix | Gallery | Chooser


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of the page.

    Attributes:
        key: short word for its address on the page.
        title: heading of the panel.
        lead: one sentence that says what is to be seen.
        blocks: what it shows, in order.
    """

    key: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an evaluation says in short.

    Attributes:
        figure: the main figure as text, such as "90.5%".
        title: name of the main figure.
        low: lower end of its 95% interval, as text.
        high: the upper end.
        sentence: the same in words that need no knowledge of the field.
        beside: figures to see it against, by their names.
        warnings: what is not right about the evaluation.
        width: width of the interval, a fraction.
    """

    figure: str
    title: str
    low: str
    high: str
    sentence: str
    beside: Mapping[str, str]
    warnings: Sequence[str]
    width: float


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """What `mnft eval` left.

    Attributes:
        folder: the folder of the files.
        metrics: the content of metrics.json.
        labels: names of the model's outputs, in order.
        limit: largest number of pictures to show.
    """

    folder: Path
    metrics: Mapping[str, Any]
    labels: tuple[str, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a task says of an evaluation.

    Attributes:
        verdict: the evaluation in short.
        panels: the task's own panels, in order.
        pipeline_tag: the Hugging Face hub's name for what the model does.
        hub_metrics: the hub's name of each figure, and the figure.
    """

    verdict: Verdict
    panels: Sequence[Panel]
    pipeline_tag: str
    hub_metrics: Mapping[str, float]


def choose_shown(
    entries: Sequence[Entry], group: Callable[[Entry], Hashable], limit: int
) -> list[Entry]:
    """Choose the first of each group, then as many others as there is room for, in their order.

    Args:
        entries: what could be shown, the most important first.
        group: the group of an entry.
        limit: largest number to choose; with more groups than that, the first ones.
    """
    seen: set[Hashable] = set()
    first: list[int] = []
    others: list[int] = []
    for number, entry in enumerate(entries):
        (others if group(entry) in seen else first).append(number)
        seen.add(group(entry))
    return [entries[number] for number in sorted([*first, *others][:limit])]


def list_shown_groups(panel: Panel) -> set[str]:
    """The groups of all pictures of a panel, to which cells of tables may lead."""
    return {group for block in panel.blocks if isinstance(block, Gallery) for group in block.groups}
