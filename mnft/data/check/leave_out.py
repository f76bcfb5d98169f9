"""Write the list of files to leave out, as `mnft data check --fix` does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mnft import files
from mnft.data.check.findings import Finding
from mnft.data.exclude import read_list, read_text
from mnft.errors import ConfigError

_HEAD = "# mnft: files to leave out; data.exclude names this list"


_EXPLANATION = """\
# One path a line, relative to the image folder. Lines with # are comments; a path in "double
# quotes" is a JSON string. Nothing was deleted: take a line away to use the file again.
"""


# A path that another reader of lines would take for something else.
_QUOTED = re.compile(r'^[#"\s]|\s$|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def write_list(path: Path, findings: Sequence[Finding]) -> int:
    """Write what findings leave out; an existing list is kept, and added to.

    Args:
        path: where the list is, or will be.
        findings: findings whose `leave_out` becomes lines, and whose `look_at` becomes comments
            for a person to decide on.

    Returns:
        The number of files that were added.

    Raises:
        ConfigError: the file exists and is not such a list, or cannot be written.
    """
    text, known = _HEAD + "\n" + _EXPLANATION, set[str]()
    if path.exists():
        text = read_text(path)
        if not text.startswith(_HEAD):
            raise ConfigError(
                f"{path}: is there already and is no list of files to leave out",
                hint="name another file; it was left as it is",
            )
        text = text if text.endswith("\n") else text + "\n"
        known = set(read_list(path))
    left = {entry for finding in findings for entry in finding.leave_out} - known
    seen, parts = set(known), [text]
    for finding in findings:
        reason = _one_line(f"{finding.kind}: {finding.message}")
        active = [entry for entry in finding.leave_out if entry not in seen]
        doubtful = [e for e in finding.look_at if e not in seen | left and _comment(e) not in text]
        if not active and not doubtful:
            continue
        kept = [p for p in finding.paths if p not in finding.leave_out + finding.look_at]
        beside = f" (stays: {', '.join(map(_quote, kept[:3]))})" if kept else ""
        parts.append(f"\n# {reason}{beside}\n")
        parts += [f"{_quote(entry)}\n" for entry in active]
        parts += [f"{_comment(entry)}\n" for entry in doubtful]
        seen |= set(active) | set(doubtful)
    try:
        files.write_text(path, "".join(parts))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return len(left)


def _quote(path: str) -> str:
    return json.dumps(path) if _QUOTED.search(path) else path


def _comment(path: str) -> str:
    return f"# look: {_quote(path)}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
