"""A real Azure blob store for tests: Microsoft's emulator, which `make tools` installs.

Fixture: `azurite` (one per session, started by the first test that asks). Without the program the tests that
ask are skipped; in CI they fail.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

_PROGRAM = Path(__file__).parents[2] / ".tools/azurite/node_modules/.bin/azurite-blob"
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Azurite:
    """Where it listens; the account and key are the emulator's own, known to everybody."""

    port: int
    account: str = "devstoreaccount1"
    key: str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    @property
    def endpoint(self) -> str:
        """The account's address."""
        return f"http://127.0.0.1:{self.port}/{self.account}"

    def settings(self) -> dict[str, Any]:
        """Settings for a container of the test's own, which is not made yet."""
        return {
            "azure_account": self.account,
            "azure_account_key": self.key,
            "azure_container": f"tests-{uuid.uuid4().hex}",
            "azure_endpoint": self.endpoint,
        }


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The emulator."""
    if not _PROGRAM.is_file():
        message = "azurite is not installed; `make tools` installs it where there is npm"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("azurite")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    arguments = ["--blobPort", str(port), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(_PROGRAM), *arguments, "--disableTelemetry"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _until(lambda: _answers(port), process, log)
        yield Azurite(port)
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx.HTTPError:
        return False
    return True


def _until(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while not what():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"azurite does not answer:\n{log.read_text()}")
        time.sleep(0.05)
