"""Standard output that is closed from the start: nothing is lost, and no work is done in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_support import Place, Warm

pytestmark = pytest.mark.faults
CLOSE_STDOUT = "import os, sys; os.close(1); sys.stdout = None"


def test_a_training_with_closed_output_ends_well(
    warm: Warm, fault_images: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path / "place", warm, fault_images)
    ended = place.train("train.epochs=1", first=CLOSE_STDOUT)
    assert (ended.code, ended.out) == (0, "")
    assert "the best model is" in ended.err
    image = next(fault_images.rglob("*.png"))
    ended = place.call("eval", "--ckpt", place.run, first=CLOSE_STDOUT)
    assert ended.code == 0, ended.err
    # Rows that nobody can read are refused before they are computed, unless a file takes them.
    ended = place.call("predict", "--ckpt", place.run, image, first=CLOSE_STDOUT)
    ended.fails_clearly(2, "standard output is closed", "-o FILE.csv")
    rows = place.folder / "rows.csv"
    ended = place.call("predict", "--ckpt", place.run, image, "-o", rows, first=CLOSE_STDOUT)
    assert ended.code == 0, ended.err
    assert rows.read_text().count("\n") == 2
