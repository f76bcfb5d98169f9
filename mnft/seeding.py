"""Seeds that follow from other seeds, the same on every machine."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, such as a run's seed and an epoch."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
