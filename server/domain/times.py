"""Instants as the API shows them: UTC, cut to milliseconds, `YYYY-MM-DDTHH:MM:SS.mmmZ` (queue.md 1.1)."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=4096)
def to_text(moment: datetime) -> str:
    """The API's text of an aware UTC instant, cut to milliseconds."""
    return f"{moment.isoformat(timespec='milliseconds')[:23]}Z"


def cut(moment: datetime) -> datetime:
    """The instant without what lies below the millisecond."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@lru_cache(maxsize=4096)
def from_milliseconds(milliseconds: int) -> datetime:
    """The instant so many milliseconds after the epoch."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def to_milliseconds(moment: datetime) -> int:
    """Milliseconds from the epoch to the instant."""
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


@lru_cache(maxsize=4096)
def add_years(moment: datetime, years: int) -> datetime:
    """The same day and time so many calendar years later; 29 February becomes 1 March (queue.md T-12)."""
    try:
        return moment.replace(year=moment.year + years)
    except ValueError:
        return moment.replace(year=moment.year + years, month=3, day=1)
