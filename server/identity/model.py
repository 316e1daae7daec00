"""The outcome of authentication, whichever door and scheme it came through."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from server.domain.scopes import ScopeSet

CLIENT_ID_PATTERN = r"[A-Za-z0-9!@/:.+|_-]+"
ACCESS_TOKEN_PATTERN = r"[a-zA-Z0-9_-]{22,66}"
SKEW_S = 300.0
"""How far the clocks of those who issue credentials may be off from ours (auth.md 4.3)."""
MAX_LIFETIME_S = 31 * 86400.0
"""How long a certificate may last, and how far ahead a token may expire."""

NOBODY = "auth-failed:no-auth"
"""The clientId shown for a caller without credentials (auth.md 7)."""

_client_id_fullmatch = re.compile(CLIENT_ID_PATTERN).fullmatch
_access_token_fullmatch = re.compile(ACCESS_TOKEN_PATTERN).fullmatch


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller with everything the roles add to its credential.

    `expires` is when the credential behind it ends (epoch seconds, inf for none): a client's or a
    certificate's end, not that of the single short-lived token. A certificate is accepted for the
    clock skew of 300 s longer.
    """

    client_id: str
    scopes: ScopeSet
    expires: float
    scheme: Literal["none", "bearer", "hawk"]


def is_client_id(value: object) -> bool:
    """Whether a value of unknown origin can name a client."""
    return isinstance(value, str) and _client_id_fullmatch(value) is not None


def is_access_token(value: object) -> bool:
    """Whether a value of unknown origin has the form of an access token."""
    return isinstance(value, str) and _access_token_fullmatch(value) is not None


def epoch_ms(instant: datetime) -> int:
    """Whole milliseconds since the epoch of an aware instant; what is finer is cut off."""
    return int(instant.timestamp()) * 1000 + instant.microsecond // 1000


def from_epoch_ms(milliseconds: int) -> datetime:
    """The UTC instant of whole milliseconds since the epoch."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)
