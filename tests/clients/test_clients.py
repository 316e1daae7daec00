"""Runs each client's script in its own environment; every check in it is a test of ours.

Made by `make tools`; without them the tests are skipped at home and fail in CI.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.deployment import PLAIN, TOKEN, deployed
from tests.plugins.rabbitmq import Broker
from tests.plugins.s3 import S3Server

SCRIPTS = Path(__file__).parent / "scripts"
TOOLS = Path(__file__).parents[2] / ".tools"
PYTHON = TOOLS / "clients/bin/python"
NODE = TOOLS / "node"
NODE_2014 = TOOLS / "node-2014"


@pytest.fixture(scope="module")
def flaky_url(root_url: str) -> Iterator[str]:
    """A proxy in front of the server where every second connection is broken off or answered 500."""
    host, _, port = root_url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            number += 1
            if number % 4 == 1:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                client.close()
            elif number % 4 == 3:
                client.close()
            else:
                server = socket.create_connection((host, int(port)))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes on one request's bytes, or one answer's, and then hangs up: the next one is a new
    connection."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        end.close()


def _run(command: list[str], root_url: str, **variables: str) -> dict[str, str]:
    done = subprocess.run(
        command,
        env={
            **PLAIN,
            "TASKCLUSTER_ROOT_URL": root_url,
            "TASKCLUSTER_CLIENT_ID": "root",
            "TASKCLUSTER_ACCESS_TOKEN": TOKEN,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return results


def _need(path: Path) -> None:
    if not path.exists():
        text = f"{path.relative_to(TOOLS.parent)} is missing: run `make tools`"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def _python(script: str, root_url: str, **variables: str) -> dict[str, str]:
    _need(PYTHON)
    return _run([str(PYTHON), str(SCRIPTS / script)], root_url, **variables)


def _all_ok(results: dict[str, str], *names: str) -> None:
    assert set(names) <= set(results)
    failed = {name: text for name, text in results.items() if text != "ok"}
    assert not failed, "\n".join(f"--- {name}\n{text}" for name, text in failed.items())


def test_the_python_client(root_url: str, flaky_url: str) -> None:
    """A-033: PyPI taskcluster, sync and asyncio: every method, signed URLs, credentials, retries."""
    results = _python("python_client.py", root_url, FLAKY_ROOT_URL=flaky_url)
    _all_ok(results, "life", "every_method", "retries", "asynchronous")


ARTIFACTS = "s3 compressed_log object_artifacts other_artifacts helpers wrong_hashes asynchronous".split()


def test_the_python_client_and_artifacts_on_disk(root_url: str) -> None:
    """O-044, O-045, O-047, O-048, O-049, O-050: artifacts of every type with the client's own helpers."""
    _all_ok(_python("artifacts.py", root_url), *ARTIFACTS)


def test_the_python_client_and_artifacts_in_s3(
    s3_server: S3Server, s3_buckets: tuple[Any, Callable[[], str]], tmp_path: Path
) -> None:
    """The same, with a real S3 server behind the URLs, set up by our command."""
    _, make = s3_buckets
    store = {
        "TCQUEUE_S3_ENDPOINT": s3_server.endpoint,
        "TCQUEUE_S3_REGION": s3_server.region,
        "TCQUEUE_S3_ACCESS_KEY": s3_server.access_key,
        "TCQUEUE_S3_SECRET_KEY": s3_server.secret_key,
        "TCQUEUE_S3_PUBLIC_BUCKET": make(),
        "TCQUEUE_S3_PRIVATE_BUCKET": make(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "storage", "setup"],
        env={**PLAIN, **store},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "everybody may read: done" in done.stdout
    with deployed(tmp_path, **store) as (said, _):
        _all_ok(_python("artifacts.py", f"http://{said['http']}"), *ARTIFACTS)


def test_scriptworker(root_url: str) -> None:
    """compat.md 8: claim, reclaim, report, with its own functions."""
    _all_ok(_python("scriptworker_life.py", root_url), "artifacts", "completed", "failed", "exception")


def test_taskgraph(root_url: str) -> None:
    """A decision task's way of creating a graph."""
    _all_ok(_python("taskgraph_creation.py", root_url), "creation")


def test_the_node_client(root_url: str) -> None:
    """A-033, O-046: npm taskcluster-client, artifacts and objects included."""
    _need(NODE / "node_modules/taskcluster-client/package.json")
    node = shutil.which("node")
    assert node is not None
    results = _run([node, str(SCRIPTS / "node_client.mjs")], root_url, CLIENTS_NODE_DIR=str(NODE))
    _all_ok(results, "life", "testers", "artifacts", "objects")


def test_the_node_client_of_2014(rabbitmq: Broker, tmp_path: Path) -> None:
    """npm taskcluster-client of that time, unmodified: a task's life with its artifacts, a graph of three
    tasks with a rerun, both with its listener on the exchanges of 2014."""
    _need(NODE_2014 / "node_modules/taskcluster-client/package.json")
    node = shutil.which("node")
    assert node is not None
    with deployed(tmp_path, TCQUEUE_AMQP_URL=rabbitmq.url) as (said, _):
        results = _run(
            [node, "--no-deprecation", str(SCRIPTS / "node_client_of_2014.cjs")],
            f"http://{said['http']}",
            CLIENTS_NODE_DIR=str(NODE_2014),
            # Its AMQP library takes an empty path for a virtual host without a name.
            AMQP_URL=f"{rabbitmq.url.rstrip('/')}/%2f",
        )
    _all_ok(results, "life", "defining", "broker", "graph")


def _curl(*arguments: str) -> str:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        [curl, "--silent", "--show-error", *arguments], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(root_url: str) -> None:
    """What people do by hand."""
    assert json.loads(_curl(f"{root_url}/api/queue/v1/ping"))["alive"] is True
    assert json.loads(_curl(f"{root_url}/api/queue/v1/ping/"))["alive"] is True
    assert (
        json.loads(_curl("--compressed", f"{root_url}/references/queue/v1/api.json"))["serviceName"]
        == "queue"
    )
    allowed = _curl("-i", "-X", "OPTIONS", f"{root_url}/api/queue/v1/tasks")
    assert "allow: POST" in allowed
    refused: dict[str, Any] = json.loads(
        _curl("-X", "POST", f"{root_url}/api/queue/v1/tasks/status", "-d", "{}")
    )
    assert refused["code"] == "MalformedPayload"
