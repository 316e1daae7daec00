"""How many cases a run has: TCQUEUE_TEST_FUZZ_CASES, or few."""

from __future__ import annotations

import os

FEW = 150


def cases(share: float = 1.0) -> int:
    """So many of a property's cases."""
    return max(1, int(int(os.environ.get("TCQUEUE_TEST_FUZZ_CASES", FEW)) * share))
