"""Which version runs (queue.md 3.9, in Dockerflow style)."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import metadata


@lru_cache(maxsize=1)
def version_object() -> dict[str, str]:
    """`version`, `commit`, `source`, `build`; what is unknown is empty."""
    return {
        "version": metadata.version("tcqueue"),
        "commit": os.environ.get("SOURCE_COMMIT", ""),
        "source": os.environ.get("SOURCE_URL", ""),
        "build": os.environ.get("BUILD_URL", ""),
    }
