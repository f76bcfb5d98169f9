"""The config section of `mnft search`: what is tried, how, and what chooses among it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mnft.config.section import Positive, Section

Cost = Literal["latency_ms", "macs_m", "size_mb"]


class SearchConfig(Section):
    """How `mnft search` looks for better values of other keys; it does not affect training."""

    method: Literal["grid", "random", "tpe", "gp", "nsga2"] = "random"
    """`grid` tries every combination, in an order that the seed gives; `random` draws. `tpe` and
    `gp` learn from the trials before (a tree of Parzen estimators, a Gaussian process), and `nsga2`
    is for several objectives. Points of `grid` and `random` do not depend on the number of
    workers."""
    trials: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Number of trials. Empty: every combination for `grid`, else 30, or no limit if
    search.minutes is set."""
    minutes: Positive | None = None
    """Minutes from the command's start after which no further trial begins. Empty: no limit."""
    seeds: Annotated[int, Field(ge=0, le=100)] = 2
    """Further seeds that the best three trials are trained with before one is named; 0 names the
    best trial as it is, which looks better than it is."""
    rungs: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    """Epochs after which the worse two thirds of the trials stop, in ascending order; 0 is the
    fitted head. Empty: every trial trains to its end."""
    objectives: Annotated[list[str], Field(min_length=1, max_length=3)] | None = None
    """A figure of the val split, and then any of `latency_ms` (one image, exported file),
    `macs_m` (10^6 multiply-accumulates) and `size_mb` (10^6 bytes of the exported file). Empty:
    eval.monitor."""
    limits: dict[Cost, Positive] = Field(default={})
    """Largest latency_ms, macs_m and size_mb of a model that may be named. A trial above one is not
    trained."""
    storage: str | None = None
    """Where workers meet: an Optuna URL such as postgresql://host/database. Empty: a journal file
    in the search's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the points; train.seed is that of the trainings."""
    dir: str = "searches"
    """Folder that contains the folders of searches."""
    name: str | None = None
    """Name of the search and of its folder. Empty: the config file's name."""
    space: dict[str, Any] = Field(default={})
    """Keys of the config with what to try: a list is a choice, {low: 1e-4, high: 1e-2, log: true}
    a range; `step` makes a range a list of equal distances."""

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError(f"found {value}, expected ascending epochs")
        return value

    @field_validator("objectives")
    @classmethod
    def _a_figure_first(cls, value: list[str] | None) -> list[str] | None:
        costs = {"latency_ms", "macs_m", "size_mb"}
        if value and (value[0] in costs or not costs.issuperset(value[1:])):
            raise ValueError(f"found {value}, expected one figure of the val split, then costs")
        if value and len(set(value)) < len(value):
            raise ValueError(f"found {value}, expected each objective once")
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value in {".", ".."} or "/" in value):
            raise ValueError(f"found {value!r}, expected a folder name without slashes")
        return value
