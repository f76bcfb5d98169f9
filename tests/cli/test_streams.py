"""Closed standard streams, and locales that cannot spell the names of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import MakeFolder

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of the shell with `mnft` in it, in a folder."""
    mnft = f'mnft() {{ "{sys.executable}" -m mnft "$@"; }}; '
    clean = {k: v for k, v in os.environ.items() if k not in {"LANG", "PYTHONIOENCODING", *ASCII}}
    return subprocess.run(
        ["sh", "-c", mnft + line], cwd=folder, capture_output=True, env={**clean, **env}
    )


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize("form", ["", "--json"])
def test_a_closed_stream_is_no_bug(tmp_path: Path, closed: str, form: str) -> None:
    result = shell(f"mnft data fetch --list {form} {closed}", tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert bool(result.stdout) == ("1>&-" not in closed)


def test_names_are_read_under_an_ascii_locale(tmp_path: Path, make_folder: MakeFolder) -> None:
    (make_folder("żółw") / "red").rename(tmp_path / "żółw" / "花")
    result = shell("mnft init żółw", tmp_path, **ASCII)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "żółw.yaml\n"
    assert "花" in (tmp_path / "żółw.yaml").read_text(encoding="utf-8")


def test_output_in_an_encoding_without_the_letters_is_escaped(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    make_folder("żółw")
    result = shell("mnft init żółw", tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, rb"\u017c\xf3\u0142w.yaml" + b"\n")
