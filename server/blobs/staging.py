"""Uploads on their way: bytes gathered in a file of this machine until they are complete and checked.

An upload that breaks off leaves its file, and goes on where that ends. Each file begins with a gap, in which
the disk store writes what it knows of the blob.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from server.blobs.disk import CHUNK_BYTES, HEAD_BYTES
from server.errors import InputError, RequestConflict

_STALE_S = 24 * 3600.0


class Upload:
    """One upload, open for writing and locked against others. Methods block."""

    def __init__(self, path: Path, offset: int) -> None:
        """Goes on at `offset`; what lies behind it is forgotten. Raises InputError when not so much is there,
        RequestConflict while somebody else uploads the same."""
        self.path = path
        self._file = open(path, "a+b", buffering=0)
        try:
            self._begin(offset)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, offset: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestConflict("another upload of this artifact is under way") from None
        there = max(0, os.fstat(self._file.fileno()).st_size - HEAD_BYTES)
        if offset > there:
            raise InputError(f"the upload can go on at {there} at most, not at {offset}")
        self._file.truncate(HEAD_BYTES + offset)
        self.length = offset
        self._hash = hashlib.sha256()
        at = HEAD_BYTES
        while piece := os.pread(self._file.fileno(), min(CHUNK_BYTES, HEAD_BYTES + offset - at), at):
            self._hash.update(piece)
            at += len(piece)

    def write(self, pieces: list[bytes]) -> None:
        """Adds bytes."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) or 0 :]
            self._hash.update(piece)
            self.length += len(piece)

    def sha256(self) -> str:
        """The SHA-256 of all bytes so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Leaves the upload as it is, for another call to go on with."""
        self._file.close()

    def drop(self) -> None:
        """Forgets the upload."""
        self.path.unlink(missing_ok=True)
        self._file.close()


class Staging:
    """The folder of uploads on their way. Methods block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, key: str, offset: int) -> Upload:
        """Begins or continues the upload of a blob; see Upload."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return Upload(self._place(key), offset)

    def received(self, key: str) -> int:
        """How many bytes of an upload are there."""
        with suppress(FileNotFoundError):
            return max(0, self._place(key).stat().st_size - HEAD_BYTES)
        return 0

    def tidy(self) -> int:
        """Deletes what nobody has gone on with for a day, and returns how many."""
        removed = 0
        for file in self._folder.glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    file.unlink()
                    removed += 1
        return removed

    def _place(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()
