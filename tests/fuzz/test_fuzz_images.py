"""Mutated image files through the decoder: decoded or refused, without crash, hang or bloat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("count", [600, pytest.param(6_500, marks=pytest.mark.slow)])
def test_mutated_images(count: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("decode_mutated.py")
    ended = subprocess.run(
        [sys.executable, script, str(count)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    seen = json.loads(ended.stdout.splitlines()[-1])
    print(seen)
    assert seen["different"] >= 0.8 * count
    assert seen["decoded"] > 0.05 * count
    assert seen["refused"] > 0.2 * count
