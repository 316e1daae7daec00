"""Instants as the API writes and reads them (compat.md 5): milliseconds, UTC, `Z`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@lru_cache(maxsize=4096)
def to_text(seconds: int, nanos: int) -> str:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ`; what is finer than a millisecond is cut off."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return (
        f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000:03d}Z"
        if moment.year > 999
        else (f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}.{nanos // 1_000_000:03d}Z")
    )


def fill(stamp: Timestamp, text: str) -> bool:
    """Reads an RFC 3339 date with a zone into a timestamp, cut to milliseconds; False if it is none."""
    found = _parse(text)
    if found is None:
        return False
    stamp.seconds, stamp.nanos = found
    return True


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[int, int] | None:
    """Seconds since the epoch and nanoseconds; None for what is no date."""
    matched = _RFC_3339.fullmatch(text)
    if matched is None:
        return None
    day, clock, fraction, zone = matched.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        seconds = int(moment.timestamp())
        datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return seconds, int((fraction or "0")[:3].ljust(3, "0")) * 1_000_000
