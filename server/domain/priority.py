"""Priority names and their claim ranks (queue.md 1.1): 7 is claimed first."""

from __future__ import annotations

RANKS = {
    "lowest": 1,
    "very-low": 2,
    "low": 3,
    "medium": 4,
    "high": 5,
    "very-high": 6,
    "highest": 7,
}
NAMES = {rank: name for name, rank in RANKS.items()}

#: For each rank, the names whose create-task scope allows it: a scope for more allows less.
ALLOWED_BY = {rank: [NAMES[r] for r in range(7, rank - 1, -1)] for rank in NAMES}
