"""Serialized messages put together from serialized parts.

A field of a message type is its tag, its length and its bytes, in any order, and of a scalar given twice
the last one counts: so what is stored serialized can go into an answer without being read first.
"""

from __future__ import annotations

from collections.abc import Iterable


def tag(number: int) -> bytes:
    """The tag of a message, string or bytes field; numbers up to 15."""
    return bytes([number << 3 | 2])


def varint(value: int) -> bytes:
    """A length, or any other number that is not negative."""
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def repeated(head: bytes, parts: Iterable[bytes]) -> bytes:
    """A repeated field, given its tag and its messages."""
    return b"".join([piece for part in parts for piece in (head, varint(len(part)), part)])


_SMALL = [bytes([n]) for n in range(0x80)]
