"""A server as people start it, in a process of its own, for clients that know nothing of us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("TCQUEUE_", "TASKCLUSTER_")) and name != "DATABASE_URL"
}


@contextmanager
def deployed(folder: Path, **variables: str) -> Iterator[tuple[dict[str, str], Path]]:
    """A server with its own database in a folder: what it said of itself, and its log."""
    log = folder / "log"
    arguments = ["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={
                **PLAIN,
                "TCQUEUE_ROOT_ACCESS_TOKEN": TOKEN,
                "TCQUEUE_CLAIM_POLL_S": "0.2",
                "TCQUEUE_SHUTDOWN_GRACE_S": "1",
                **variables,
            },
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"the server did not start:\n{log.read_text()[-4000:]}"
        yield json.loads(line), log
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def root_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where such a server is."""
    with deployed(tmp_path_factory.mktemp("deployment")) as (said, _):
        yield f"http://{said['http']}"
