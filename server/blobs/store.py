"""What every store of artifact bytes can do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

PUT_LIFETIME_S = 45 * 60
"""How long a URL for uploads is good, as callers are told; the store allows SLACK_S more (queue.md 7.2)."""

GET_LIFETIME_S = 30 * 60
"""How long a signed URL for downloads is good (queue.md 7.6)."""

SLACK_S = 10
"""What a store adds to the lifetime told of a URL for uploads, for those under way at the end."""


@dataclass(frozen=True, slots=True)
class BlobMeta:
    """What a store keeps beside the bytes and says with every download."""

    content_type: str
    content_encoding: str = ""
    #: Downloads are saved, not shown, by browsers.
    attachment: bool = False

    def headers(self) -> dict[str, str]:
        """What an upload must say for the store to keep it."""
        found = {"Content-Type": self.content_type}
        if self.content_encoding:
            found["Content-Encoding"] = self.content_encoding
        if self.attachment:
            found["Content-Disposition"] = "attachment"
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """A download under way: `length` is of the whole blob, `chunks` begin at the offset asked for. To be
    closed, whether all chunks were read or none."""

    meta: BlobMeta
    length: int
    etag: str
    chunks: AsyncGenerator[bytes, None]
    #: Lets go of what even chunks that nobody began to read hold.
    release: Callable[[], None]

    async def close(self) -> None:
        """Ends the download."""
        await self.chunks.aclose()
        self.release()


@dataclass(frozen=True, slots=True)
class Found:
    """A blob met on a walk through a bucket."""

    key: str
    modified: datetime


class BlobStore(Protocol):
    """Two buckets of blobs. Everybody may read the public one unless its URLs are signed, too.

    Asynchronous methods raise Unavailable when the store is away; the same call may succeed soon.
    """

    @property
    def public_bucket(self) -> str:
        """Name of the bucket for artifacts below `public/`."""
        ...

    @property
    def private_bucket(self) -> str:
        """Name of the bucket for everything else."""
        ...

    def put_url(
        self,
        bucket: str,
        key: str,
        meta: BlobMeta,
        *,
        now: datetime,
        lifetime_s: int,
        length: int | None = None,
    ) -> str:
        """A URL that takes a PUT of the blob with `meta.headers()`, and of that length if one is given."""
        ...

    def get_url(self, bucket: str, key: str, *, now: datetime, lifetime_s: int) -> str:
        """A URL that carries its own authorization."""
        ...

    def plain_url(self, bucket: str, key: str) -> str:
        """The URL of a blob that needs no authorization."""
        ...

    def cdn_url(self, key: str) -> str | None:
        """The same at the content delivery network in front of the public bucket; None without one."""
        ...

    async def put(self, bucket: str, key: str, meta: BlobMeta, data: bytes) -> None:
        """Stores a small blob, in place of what was there."""
        ...

    async def put_file(self, bucket: str, key: str, meta: BlobMeta, staged: Path) -> None:
        """Stores a staged upload (see `staging`), in place of what was there. The file may be consumed."""
        ...

    async def read(self, bucket: str, key: str, offset: int = 0) -> Reading | None:
        """Opens a blob; None when there is none. Raises InputError for an offset beyond its end."""
        ...

    async def delete(self, bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        """Deletes blobs; one that is not there counts as deleted. Returns what went wrong, by key."""
        ...

    def walk(self, bucket: str) -> AsyncIterator[Found]:
        """All blobs of a bucket, in no particular order."""
        ...

    async def setup(self) -> Iterable[str]:
        """Makes buckets, policies and the like as they must be; a line for each thing done or found."""
        ...

    async def close(self) -> None:
        """Lets go of connections and threads."""
        ...
