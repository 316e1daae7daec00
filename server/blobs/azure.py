"""Blobs in Azure, for the artifacts of type `azure` that the API of 2014 knows (queue.md 4.2).

Their content may be rewritten while the task runs, which is how that time's live logs worked. Needs the extra
`azure` of this package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from server.config import Settings, SettingsError
from server.errors import Unavailable

T = TypeVar("T")

PUT_LIFETIME_S = 30 * 60
"""How long a URL for uploads is good."""

GET_LIFETIME_S = 20 * 60
"""How long a URL for downloads is good."""

_PREFIX = "azure:"
_BATCH = 256
"""As many as Azure deletes in one request."""

_CLOCKS_DIFFER = timedelta(minutes=5)


class AzureStore:
    """One container of a storage account."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when the SDK is not installed."""
        try:
            from azure.storage.blob import BlobServiceClient, LinearRetry
        except ImportError:
            raise SettingsError(
                "artifacts in Azure need the Azure SDK: pip install 'tcqueue[azure]'"
            ) from None
        self._account = settings.azure_account
        self._key = settings.azure_account_key
        self._container = settings.azure_container
        endpoint = settings.azure_endpoint or f"https://{self._account}.blob.core.windows.net"
        self._base = f"{endpoint.rstrip('/')}/{self._container}"
        credential = {"account_name": self._account, "account_key": self._key}
        self._service = BlobServiceClient(
            endpoint,
            credential=credential,
            retry_policy=LinearRetry(backoff=1, retry_total=2, random_jitter_range=0),
            connection_timeout=5,
            read_timeout=30,
        )
        self._client = self._service.get_container_client(self._container)
        self._threads = ThreadPoolExecutor(4, "azure-store")

    @property
    def bucket(self) -> str:
        """What rows of artifacts call the container."""
        return _PREFIX + self._container

    def put_url(self, key: str, *, now: datetime, lifetime_s: int = PUT_LIFETIME_S) -> str:
        """A URL that takes a PUT with the header `x-ms-blob-type: BlockBlob`, again and again."""
        return self._signed(key, now, lifetime_s, write=True)

    def get_url(self, key: str, *, now: datetime, lifetime_s: int = GET_LIFETIME_S) -> str:
        """A URL that carries its own authorization."""
        return self._signed(key, now, lifetime_s, write=False)

    def _signed(self, key: str, now: datetime, lifetime_s: int, *, write: bool) -> str:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        signature = generate_blob_sas(
            self._account,
            self._container,
            key,
            account_key=self._key,
            permission=BlobSasPermissions(create=write, write=write, read=not write),
            start=now - _CLOCKS_DIFFER,
            expiry=now + timedelta(seconds=lifetime_s),
        )
        return f"{self._base}/{quote(key, safe='/-_.~')}?{signature}"

    async def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Deletes blobs; one that is not there counts as deleted. Returns what went wrong, by key. Raises
        Unavailable."""

        def remove() -> dict[str, str]:
            failed = {}
            for at in range(0, len(keys), _BATCH):
                batch = keys[at : at + _BATCH]
                answers = self._client.delete_blobs(*batch, raise_on_any_failure=False)
                for key, answer in zip(batch, answers, strict=True):
                    if answer.status_code not in (200, 202, 204, 404):
                        failed[key] = f"{answer.status_code} {answer.reason}"
            return failed

        return await self._blocking(remove)

    async def keys(self) -> list[str]:
        """The keys of all blobs."""
        return await self._blocking(lambda: [str(name) for name in self._client.list_blob_names()])

    async def setup(self) -> Iterable[str]:
        """Makes the container if need be, and lets browsers read and put by URL."""

        def make() -> list[str]:
            from azure.core.exceptions import ResourceExistsError
            from azure.storage.blob import CorsRule

            try:
                self._client.create_container()
                done = "made"
            except ResourceExistsError:
                done = "exists"
            rule = CorsRule(
                ["*"],
                ["GET", "HEAD", "PUT"],
                allowed_headers=["*"],
                exposed_headers=["*"],
                max_age_in_seconds=900,
            )
            self._service.set_service_properties(cors=[rule])
            return [f"container {self._container} {done}", f"container {self._container}: CORS: done"]

        return await self._blocking(make)

    async def close(self) -> None:
        """Lets go of connections and threads."""
        await self._blocking(self._service.close)
        self._threads.shutdown(wait=True)

    async def _blocking(self, work: Callable[[], T]) -> T:
        from azure.core.exceptions import AzureError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (AzureError, OSError) as e:
            raise Unavailable(f"the artifact store in Azure does not do it: {_short(e)}") from e


def _short(error: Any) -> str:
    return str(getattr(error, "reason", None) or error).partition("\n")[0]
