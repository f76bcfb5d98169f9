"""What `mnft eval` measures only on request: unknown images and robustness.

This is the one place where the files of these evaluations are read.
"""

from __future__ import annotations

from shlex import quote

from mnft.report.sources import Sources
from mnft.tasks.panels import Panel, Text


def build_unknowns(sources: Sources) -> Panel:
    """Say how many images of none of the labels are accepted."""
    run = quote(str(sources.folder))
    text = (
        "Not measured: what the model does with images that show none of this. A model that was "
        "never shown any names them with confidence. Collect some that may turn up, and run:"
    )
    command = f"mnft eval {run} --unknown FOLDER"
    return Panel("unknowns", "Unknown images", "", [Text(text, "missing", command)])


def build_robustness(sources: Sources) -> Panel:
    """Say what blur, noise, light and other faults of cameras cost."""
    run = quote(str(sources.folder))
    text = (
        "Not measured: what blur, noise, bad light and strong compression cost. These figures are "
        "of images as clean as the ones here. Run:"
    )
    command = f"mnft eval {run} --robustness"
    return Panel("robustness", "Robustness", "", [Text(text, "missing", command)])
