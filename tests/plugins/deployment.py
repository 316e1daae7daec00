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
    folder = tmp_path_factory.mktemp("deployment")
    log = folder / "log"
    arguments = ["serve", "--grpc-listen", "", "--http-listen", "127.0.0.1:0", "--json"]
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
            },
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the server did not start:\n{log.read_text()[-4000:]}"
    said = json.loads(line)
    try:
        yield f"http://{said['http']}"
    finally:
        process.terminate()
        process.communicate(timeout=30)
