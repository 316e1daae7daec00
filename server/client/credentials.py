"""Credentials of a caller, and the metadata they become: a short-lived token, kept while it lasts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.identity import tokens

LIFETIME_S = 900.0
# A token is replaced while it still has this long to live, so that none runs out on its way.
_RENEW_BEFORE_S = 120.0

_PREFIXES = ("TCQUEUE_CLIENT_", "TASKCLUSTER_")
CREDENTIALS_FILE = "TCQUEUE_CLIENT_CREDENTIALS_FILE"


class CredentialsError(ValueError):
    """The environment's credentials cannot be used; the message says why."""


class Credentials:
    """A client id with its access token, or nobody (both empty).

    `certificate` is the JSON text of temporary credentials; `authorized_scopes` narrows what calls
    may do (auth.md 4.4).
    """

    __slots__ = ("_authorization", "_until", "access_token", "authorized_scopes", "certificate", "client_id")

    def __init__(
        self,
        client_id: str = "",
        access_token: str = "",
        certificate: str = "",
        authorized_scopes: Sequence[str] | None = None,
    ) -> None:
        self.client_id = client_id
        self.access_token = access_token
        self.certificate = certificate
        self.authorized_scopes = authorized_scopes
        self._authorization = ""
        self._until = 0.0

    @property
    def anonymous(self) -> bool:
        """Whether calls go without credentials."""
        return not self.client_id

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Credentials:
        """From TCQUEUE_CLIENT_ID, _ACCESS_TOKEN, _CERTIFICATE, or else TASKCLUSTER_CLIENT_ID and so on.

        Before both comes the file that workers keep fresh for their commands. Without any, nobody.
        CredentialsError when half of them is missing.
        """
        file = environ.get(CREDENTIALS_FILE)
        if file:
            return cls.from_file(Path(file))
        for prefix in _PREFIXES:
            # The names of the first kind are TCQUEUE_CLIENT_ID, not TCQUEUE_CLIENT_CLIENT_ID.
            id_name = "TCQUEUE_CLIENT_ID" if prefix == _PREFIXES[0] else f"{prefix}CLIENT_ID"
            client_id, token = environ.get(id_name, ""), environ.get(f"{prefix}ACCESS_TOKEN", "")
            if client_id and token:
                return cls(client_id, token, environ.get(f"{prefix}CERTIFICATE", ""))
            if client_id or token:
                missing = f"{prefix}ACCESS_TOKEN" if client_id else id_name
                given = id_name if client_id else f"{prefix}ACCESS_TOKEN"
                raise CredentialsError(f"{given} is set and {missing} is not")
        return cls()

    @classmethod
    def from_file(cls, file: Path) -> Credentials:
        """From JSON with clientId, accessToken and maybe certificate; CredentialsError."""
        try:
            fields = json.loads(file.read_text())
            return cls(fields["clientId"], fields["accessToken"], fields.get("certificate") or "")
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CredentialsError(f"{file} holds no credentials: {e}") from e

    def token(self, lifetime_s: float = LIFETIME_S, now: float | None = None) -> str:
        """A fresh token. CredentialsError when the certificate is no JSON."""
        try:
            return tokens.mint(
                self.client_id,
                self.access_token,
                certificate=self.certificate or None,
                authorized_scopes=self.authorized_scopes,
                lifetime_s=lifetime_s,
                now=now,
            )
        except ValueError as e:
            raise CredentialsError(f"the certificate is not JSON: {e}") from e

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata for a call made now."""
        if self.anonymous:
            return ()
        now = time.time()
        if now > self._until - _RENEW_BEFORE_S:
            self._authorization = f"Bearer {self.token(now=now)}"
            self._until = now + LIFETIME_S
        return (("authorization", self._authorization),)
