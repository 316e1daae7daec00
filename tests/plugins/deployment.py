"""A server as people start it, in a process of its own, for clients that know nothing of us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("TCQUEUE_", "TASKCLUSTER_")) and name != "DATABASE_URL"
}


@pytest.fixture(scope="module")
def root_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as people start it, with its own database."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "server.cli",
            "serve",
            "--grpc-listen",
            "",
            "--http-listen",
            "127.0.0.1:0",
            "--json",
        ],
        cwd=tmp_path_factory.mktemp("clients"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **PLAIN,
            "TCQUEUE_ROOT_ACCESS_TOKEN": TOKEN,
            "TCQUEUE_CLAIM_POLL_S": "0.2",
            "TCQUEUE_SHUTDOWN_GRACE_S": "1",
        },
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline() or "null")
    try:
        yield f"http://{said['http']}"
    finally:
        process.terminate()
        process.communicate(timeout=30)
