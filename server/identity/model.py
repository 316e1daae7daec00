"""The outcome of authentication, whichever door and scheme it came through."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

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
    scheme: Literal["none", "bearer", "hawk", "delegate"]


@dataclass(frozen=True, slots=True)
class HawkRequest:
    """An HTTP request as its signature sees it (auth.md 1, 2): the header, or a bewit inside `resource`.

    `resource` is the path and query as they stood on the request line, byte for byte; `host` is in lower
    case, IPv6 in brackets. `payload` is the content type (None without one) and the body, against which
    the signature's payload hash is held; None where the caller checks that itself.
    """

    method: str
    resource: str
    host: str
    port: int
    authorization: str | None
    payload: tuple[str | None, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Delegate:
    """A front door that does not ask its callers who they are, and the client it lets them act as. Only our
    own code makes one: whatever comes over a wire is a text or a HawkRequest.

    `scopes` are all it may do; None: what the client of that name may.
    """

    client_id: str
    scopes: tuple[str, ...] | None = None


Credential: TypeAlias = str | HawkRequest | Delegate | None
"""What a call brings: a bearer token, an HTTP request signed or not, a front door's own word, or nothing at
all."""


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
