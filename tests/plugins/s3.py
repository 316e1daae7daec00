"""A real S3 server for tests: versitygw, which `make tools` builds, over a folder of the test's own.

Fixtures: `s3_server` (one per session), `s3_buckets` (makes buckets of the test's own and gives a client).
Without the program the tests that ask are skipped; in CI they fail.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

_PROGRAM = Path(__file__).parents[2] / ".tools/versitygw"
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where it listens and who may do anything there."""

    endpoint: str
    access_key: str = "tests"
    secret_key: str = "tests-secret"
    region: str = "us-east-1"

    def client(self, pool: urllib3.PoolManager) -> Minio:
        """A client with all rights, over connections that the caller closes."""
        return Minio(
            self.endpoint.removeprefix("http://"),
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
            secure=False,
            http_client=pool,
        )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server, started by the first test that asks."""
    if not _PROGRAM.is_file():
        message = "versitygw is not installed; `make tools` builds it where there is Go"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="tcqueue-s3-") as scratch:
        data, attributes = Path(scratch, "data"), Path(scratch, "attributes")
        data.mkdir()
        attributes.mkdir()
        server = S3Server(f"http://127.0.0.1:{_free_port()}")
        arguments = [
            *("--access", server.access_key, "--secret", server.secret_key, "--region", server.region),
            *("--port", server.endpoint.removeprefix("http://"), "--quiet"),
            # Not every file system that tests run on has extended attributes.
            *("posix", "--sidecar", str(attributes), str(data)),
        ]
        with open(Path(scratch, "log"), "wb") as log:
            process = subprocess.Popen([_PROGRAM, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(server, process, Path(scratch, "log"))
            yield server
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def s3_buckets(s3_server: S3Server) -> Iterator[tuple[Minio, Callable[[], str]]]:
    """A client, and what makes an empty bucket of its own and returns its name."""
    with urllib3.PoolManager(timeout=urllib3.Timeout(10)) as pool:
        client = s3_server.client(pool)

        def make() -> str:
            name = f"tests-{uuid.uuid4().hex}"
            client.make_bucket(name)
            return name

        yield client, make


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the server answers; fails with its log when it ends or takes too long."""
    end = time.monotonic() + _START_S
    with urllib3.PoolManager(timeout=urllib3.Timeout(2), retries=False) as pool:
        while True:
            try:
                server.client(pool).list_buckets()
                return
            except (urllib3.exceptions.HTTPError, S3Error) as e:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"versitygw does not answer ({e}):\n{log.read_text()}")
            time.sleep(0.05)
