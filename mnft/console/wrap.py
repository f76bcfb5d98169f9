"""Line breaks between the words of a message, where a terminal would break within them."""

from __future__ import annotations

import re

from rich.cells import cell_len

# What a person copies: text in backticks, a command up to the end of its clause, a value of --set.
_COPIED = re.compile(
    r"`[^`]+`"
    r"|(?:^|(?<=: )|(?<=, )|(?<=or )|(?<=then ))(?:mnft|pip|docker|torchrun) [^;,()]+"
    r"|--set [^\s;,)]+"
)
_KEPT_SPACE = "\0"
# A line that starts in the first column would look like a message of its own.
_LEAST_INDENT = 2


def wrap(line: str, width: int, *, indent: int) -> list[str]:
    """Break a line between words, so that its parts fit on the terminal.

    Commands and paths stay in one piece, so that they can be copied: they go to the next line if
    they fit there. Only a command that is longer than a line is broken; for a path that is, the
    terminal wraps it and copies it whole.

    Args:
        line: the text; without control characters.
        width: columns of the terminal.
        indent: spaces in front of every part except the first; fewer where the terminal is narrow.

    Returns:
        The parts; one for a line that fits.
    """
    indent = min(indent, width // 4)

    def keep(found: re.Match[str]) -> str:
        fits = cell_len(found[0]) <= width - _LEAST_INDENT
        return found[0].replace(" ", _KEPT_SPACE) if fits else found[0]

    # Each with the spaces in front of it, which stay as they are within a line.
    words = re.findall(r" *[^ ]+", _COPIED.sub(keep, line) if cell_len(line) > width else line)
    parts = [""]
    for word in words:
        if parts[-1].strip() and cell_len(parts[-1] + word) > width:
            word = word.lstrip()
            parts.append(" " * max(_LEAST_INDENT, min(indent, width - cell_len(word))) + word)
        else:
            parts[-1] += word
    return [part.replace(_KEPT_SPACE, " ") for part in parts]
