"""What the queue asks of an object service, be it this deployment's or another's (object.md 3)."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from server.identity.certificates import TemporaryCredentials


class ObjectKeeper(Protocol):
    """All methods raise Unavailable when the service cannot be asked."""

    async def lock_in(self, name: str, project_id: str, upload_id: str, expires: datetime) -> None:
        """Opens an upload without data: name, id and expiry are settled from now on. A repeat does nothing;
        RequestConflict when the name belongs to another upload."""
        ...

    async def is_finished(self, name: str) -> bool:
        """Whether the object is there for downloads."""
        ...

    async def simple_url(self, name: str) -> str:
        """A URL for a plain GET. Raises ResourceNotFound."""
        ...

    def credentials(
        self, client_id: str, scope: str, start: datetime, expiry: datetime
    ) -> TemporaryCredentials:
        """Credentials named `client_id` that hold one scope of the service."""
        ...
