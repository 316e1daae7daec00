"""Artifacts: creations per second, a gigabyte through the disk store beside the disk itself, long lists, and
expiry of very many."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from bench.http_wire import API, Connection, Credentials, definition
from bench.wire import slugid
from server.blobs.disk import DiskStore
from server.blobs.signing import UrlSigner
from server.loops.artifacts import ArtifactExpiry
from server.store.database import Database, PoolSettings

GIGABYTE = 1024**3

_MANY = """
INSERT INTO artifacts (task_id, run_id, name, storage_type, content_type, expires, present, bucket)
SELECT %(task)s, 0, 'public/' || to_char(i, 'FM0000000'), 's3', 'text/plain',
       now() + %(offset)s * interval '1 hour', true, 'public'
FROM generate_series(1, %(count)s) i
"""


def artifact(**fields: Any) -> bytes:
    """The JSON of an artifact of type s3 that lasts an hour."""
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds")
    return json.dumps(
        {"storageType": "s3", "contentType": "application/x", "expires": expires, **fields}
    ).encode()


async def claimed(connection: Connection, queue: str) -> tuple[str, Credentials]:
    """A running task with its credentials."""
    task_id = slugid().decode()
    await connection.call("PUT", f"{API}/task/{task_id}", definition(queue))
    body = b'{"workerGroup":"bench","workerId":"w","tasks":1}'
    (got,) = (await connection.call("POST", f"{API}/claim-work/{queue}", body))["tasks"]
    return got["status"]["taskId"], Credentials.of_task(got["credentials"])


async def new_artifact(address: str) -> tuple[str, str, str]:
    """URLs for an upload and for the download afterwards, and the task."""
    connection = await Connection.open(address)
    task_id, who = await claimed(connection, "bench/bytes")
    path = f"{API}/task/{task_id}/runs/0/artifacts/public/data"
    made = await connection.call("POST", path, artifact(), who)
    content = await connection.call("GET", path.replace("/artifacts/", "/artifact-content/"))
    return made["putUrl"], content["url"], task_id


class Peak:
    """The most anonymous memory that a process had while watched, in MB."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self._resident()
        self.most = self.before
        self._thread.start()

    def _resident(self) -> float:
        found = re.search(r"RssAnon:\s+(\d+)", self._status.read_text())
        assert found is not None
        return int(found[1]) / 1024

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, self._resident())

    def rise(self) -> float:
        """How much more it was than before."""
        self._stop.set()
        self._thread.join()
        return self.most - self.before


@contextmanager
def timed(rates: list[float]) -> Iterator[None]:
    """Notes the MB a second of moving a gigabyte."""
    began = time.perf_counter()
    yield
    rates.append(GIGABYTE / 1e6 / (time.perf_counter() - began))


def gigabyte(address: str, server_pid: int, folder: Path, rounds: int) -> dict[str, list[float]]:
    """MB a second of `dd` and `cat` on the store's disk, and of curl up and down through the store."""
    source = folder / "source"
    with source.open("wb") as file:
        block = os.urandom(1024 * 1024)
        for _ in range(1024):
            file.write(block)
    found: dict[str, list[float]] = {name: [] for name in ("dd", "cat", "up", "down", "up_mb", "down_mb")}
    copy = folder / "copy"
    for _ in range(rounds):
        with timed(found["dd"]):
            _run("dd", f"if={source}", f"of={copy}", "bs=1M", "conv=fsync", "status=none")
        with timed(found["cat"]):
            _run("sh", "-c", 'cat "$1" | cat > /dev/null', "sh", str(copy))
        copy.unlink()
        put_url, get_url, _ = asyncio.run(new_artifact(address))
        peak = Peak(server_pid)
        with timed(found["up"]):
            _run(
                "curl",
                "-sSf",
                "-T",
                str(source),
                "-H",
                "Content-Type: application/x",
                "-o",
                os.devnull,
                put_url,
            )
        found["up_mb"].append(peak.rise())
        peak = Peak(server_pid)
        with timed(found["down"]):
            _run("curl", "-sSf", "-o", os.devnull, get_url)
        found["down_mb"].append(peak.rise())
    source.unlink()
    return found


def pages(address: str, dsn: str, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of the first ten and the last ten pages of so many artifacts."""

    async def read() -> list[float]:
        connection = await Connection.open(address)
        task_id, _ = await claimed(connection, "bench/pages")
        with psycopg.connect(dsn, autocommit=True) as database:
            database.execute(_MANY, {"task": task_id, "offset": 1, "count": count})
        path, token, times, seen = f"{API}/task/{task_id}/runs/0/artifacts", "", [], 0
        while True:
            began = time.perf_counter()
            page = await connection.call("GET", path + (f"?continuationToken={token}" if token else ""))
            times.append((time.perf_counter() - began) * 1000)
            seen += len(page["artifacts"])
            token = page.get("continuationToken", "")
            if not token:
                assert seen == count
                return times

    times = asyncio.run(read())
    return times[:10], times[-11:-1]


def expiry(dsn: str, folder: Path, count: int) -> float:
    """Expired artifacts deleted a second, a file each."""

    async def expire() -> float:
        db = await Database.open(dsn, settings=PoolSettings())
        store = DiskStore(folder, UrlSigner(b"bench"), lambda: "")
        task_id = slugid().decode()
        with psycopg.connect(dsn, autocommit=True) as database:
            database.execute(_MANY, {"task": task_id, "offset": -2, "count": count})
        for i in range(1, count + 1):
            place = store._place("public", f"{task_id}/0/public/{i:07}")
            place.parent.mkdir(exist_ok=True, parents=True)
            place.write_bytes(b"x")
        loop = ArtifactExpiry(db, store, delay_s=-1800.0, pause_s=1.0)
        began, done = time.perf_counter(), 0
        while handled := await loop.run_once():
            done += handled
        took = time.perf_counter() - began
        assert done == count and not any(folder.glob("[0-9a-f][0-9a-f]/*"))
        await db.close()
        await store.close()
        return count / took

    return asyncio.run(expire())


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
