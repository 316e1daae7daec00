"""Access tokens at rest: made up, and encrypted with a key that the database never sees.

The key is Fernet's: 32 bytes in URL-safe base64. Several, separated by commas, rotate it: the first
encrypts, all of them decrypt.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from server.config import Settings, SettingsError
from server.domain import slugid

KEY_FILE = "encryption.key"


class SecretError(Exception):
    """A stored secret cannot be decrypted: it was encrypted with another key than the one given."""


class SecretBox:
    """Seals and opens secrets with the key or keys given."""

    __slots__ = ("_fernet", "_first")

    def __init__(self, keys: str) -> None:
        """Raises SettingsError when a key is malformed, without repeating it."""
        try:
            self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
            self._first = keys.partition(",")[0].strip().encode()
        except ValueError:
            raise SettingsError(
                "TCQUEUE_ENCRYPTION_KEY takes 32 bytes in URL-safe base64, or several such keys separated "
                "by commas; `python -c 'from cryptography.fernet import Fernet; "
                "print(Fernet.generate_key().decode())'` makes one"
            ) from None

    @classmethod
    def from_settings(cls, settings: Settings) -> SecretBox:
        """The box for a deployment; without a configured key, that of the file in `data_dir`.

        The file is made on first use, readable by its owner only, and only where the embedded
        database lies beside it. Raises SettingsError when there is neither.
        """
        if settings.encryption_key:
            return cls(settings.encryption_key)
        if settings.database_url:
            raise SettingsError("TCQUEUE_ENCRYPTION_KEY must be set when DATABASE_URL is")
        return cls(_kept_key(Path(settings.data_dir) / KEY_FILE))

    def derived(self, purpose: str) -> bytes:
        """A key for another purpose, the same in every process that has this box's first key."""
        return hmac.digest(self._first, purpose.encode(), "sha256")

    def seal(self, secret: str) -> bytes:
        """The secret encrypted; different each time."""
        return self._fernet.encrypt(secret.encode())

    def open(self, sealed: bytes) -> str:
        """What was sealed; SecretError when it was with another key, or not at all."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise SecretError(
                "a stored access token was encrypted with another key than this process has: set "
                f"TCQUEUE_ENCRYPTION_KEY, or bring back {KEY_FILE}, as it was when this database was made"
            ) from None


def new_access_token() -> str:
    """A fresh access token: two slugids, 44 characters."""
    return slugid.v4() + slugid.v4()


def new_key() -> str:
    """A fresh encryption key."""
    return Fernet.generate_key().decode()


def _kept_key(file: Path) -> str:
    """The key in a file, made once even when several processes come first at the same moment."""
    try:
        return file.read_text("ascii").strip()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(new_key() + "\n")
        out.flush()
        os.fsync(out.fileno())
    try:
        # A link, unlike a rename, never replaces what another process put there first.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text("ascii").strip()
