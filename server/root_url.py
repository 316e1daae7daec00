"""Where clients reach this deployment."""

from __future__ import annotations

from server.errors import InternalServerError


class RootUrl:
    """The address of the setting `root_url`; without one, where this process's own HTTP door listens."""

    def __init__(self, configured: str) -> None:
        self._url = configured.rstrip("/")

    def listening(self, url: str) -> None:
        """The HTTP door is open at this address."""
        self._url = self._url or url

    @property
    def known(self) -> str:
        """The address, without a slash at the end; empty while nobody knows it."""
        return self._url

    def __call__(self) -> str:
        """The address, without a slash at the end. Raises InternalServerError when nobody knows it."""
        if not self._url:
            raise InternalServerError("this process has no HTTP door, and TCQUEUE_ROOT_URL is not set")
        return self._url
