"""Slugids: 22 characters standing for a version 4 UUID (queue.md 1.1).

A slugid is the URL-safe base64 of the 16 bytes without padding. Version and variant bits fix
what characters 9 and 11 may be, and the two spare bits of the last one are zero, so exactly one
text stands for a UUID and comparing texts compares UUIDs.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from os import urandom
from uuid import UUID

PATTERN = r"[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]"
"""The pattern without anchors: to be used with fullmatch only, since `$` would let a newline by."""

_fullmatch = re.compile(PATTERN).fullmatch
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def is_slugid(text: str) -> bool:
    """Whether the whole text is a slugid."""
    return _fullmatch(text) is not None


def v4() -> str:
    """A new random slugid; one in 64 begins with `-`, which command lines mistake for an option."""
    return _stamp(bytearray(urandom(16)))


def pair() -> str:
    """Two of them in one text, at little more than the price of one: what certificates have as a seed."""
    raw = bytearray(urandom(32))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    raw[22] = raw[22] & 0x0F | 0x40
    raw[24] = raw[24] & 0x3F | 0x80
    return _text(raw[:16]) + _text(raw[16:])


def nice() -> str:
    """A new random slugid that begins with a letter A to f, at the price of one random bit."""
    raw = bytearray(urandom(16))
    raw[0] &= 0x7F
    return _stamp(raw)


def from_uuid(value: UUID) -> str:
    """The text for a UUID, whatever its version; only version 4 gives one that `is_slugid` takes."""
    return _text(value.bytes)


def to_uuid(slug: str) -> UUID:
    """The UUID behind a slugid; ValueError when the text is no slugid."""
    if not is_slugid(slug):
        raise ValueError(f"not a slugid: {slug!r}")
    return UUID(bytes=urlsafe_b64decode(slug + "=="))


def _stamp(raw: bytearray) -> str:
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return _text(raw)


def _text(raw: bytes | bytearray) -> str:
    return b2a_base64(raw, newline=False).translate(_URL_SAFE)[:22].decode("ascii")
