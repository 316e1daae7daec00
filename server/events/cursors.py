"""Places in the log, and the cursors that tell clients of them."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import crc32
from typing import NamedTuple

from server.errors import InputError

_VERSION = 1
_BODY = struct.Struct(">BQI")
_SUM = struct.Struct(">I")


class Position(NamedTuple):
    """A place between two events: `offset` events of row `row` lie before it, and all earlier rows."""

    row: int
    offset: int = 0


def encode(position: Position, log_id: bytes) -> str:
    """The cursor for a position. It is bound to its log: another log refuses it."""
    body = _BODY.pack(_VERSION, position.row, position.offset)
    return urlsafe_b64encode(body + _SUM.pack(crc32(body, crc32(log_id)))).rstrip(b"=").decode()


def decode(cursor: str, log_id: bytes) -> Position:
    """The position behind a cursor. Raises InputError for a text that `encode` did not make here."""
    try:
        raw = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        body, check = raw[: -_SUM.size], raw[-_SUM.size :]
        version, row, offset = _BODY.unpack(body)
        sound = _SUM.unpack(check)[0] == crc32(body, crc32(log_id))
    except (ValueError, struct.error):
        sound = False
    if not sound:
        raise InputError("the cursor is damaged, or belongs to the log of another server")
    if version != _VERSION:
        raise InputError(f"the cursor has format {version}, which this version does not know")
    position = Position(row, offset)
    # One text for each position, so that cursors can be compared.
    if encode(position, log_id) != cursor:
        raise InputError("the cursor is damaged, or belongs to the log of another server")
    return position
