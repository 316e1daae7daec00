"""Logs as people see them: `tcqueue worker` publishes them while they grow, `tcqueue task log` shows them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.plugins.deployment import PLAIN, TOKEN, deployed

PATIENCE_S = 20.0


class Deployment:
    """A server, and commands that know where it is."""

    def __init__(self, folder: Path, said: dict[str, str]) -> None:
        self.folder = folder
        self.url = f"http://{said['http']}"
        self._environment = {
            **PLAIN,
            "TCQUEUE_CLIENT_ADDRESS": said["grpc"],
            "TCQUEUE_CLIENT_ID": "root",
            "TCQUEUE_CLIENT_ACCESS_TOKEN": TOKEN,
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that runs beside the test."""
        return subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> tuple[str, str, int]:
        """Output, errors and exit code of a command."""
        process = self.start(*arguments)
        out, errors = process.communicate(timeout=PATIENCE_S)
        return out.decode(), errors.decode(), process.returncode

    def create(self, command: str) -> str:
        """A task that runs a command."""
        out, errors, code = self.run("task", "create", "-q", "live/logs", "-c", command, "--json")
        assert code == 0, errors
        task_id: str = json.loads(out)["taskId"]
        return task_id

    def content(self, task_id: str, name: str) -> Any:
        """How the last run's artifact can be read."""
        url = f"{self.url}/api/queue/v1/task/{task_id}/artifact-content/{name}"
        answer = httpx.get(url)
        return answer.json() if answer.status_code == 200 else {}


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path) as (said, _):
        yield Deployment(tmp_path, said)


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def _state(deployment: Deployment, task_id: str) -> str:
    answer = httpx.get(f"{deployment.url}/api/queue/v1/task/{task_id}/status")
    state: str = answer.json()["status"]["state"]
    return state


def test_a_log_is_shown_while_it_grows_and_afterwards(deployment: Deployment) -> None:
    gate = deployment.folder / "gate"
    task_id = deployment.create(f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo ended")
    out, errors, code = deployment.run("task", "log", task_id)
    assert (out, code) == ("", 1) and "has no log" in errors and "--follow" in errors
    follower = deployment.start("task", "log", "--follow", task_id)
    worker = deployment.start("worker", "live/logs")
    try:
        live = "public/logs/live.log"
        _until(lambda: deployment.content(task_id, live).get("storageType") == "reference")
        _until(lambda: "begun\n" in deployment.run("task", "log", task_id)[0])
        out, errors, code = deployment.run("task", "log", task_id)
        assert code == 0 and "ended\n" not in out and "still running" in errors
        gate.touch()
        followed, _ = follower.communicate(timeout=PATIENCE_S)
        assert b"begun\nended\n" in followed
        _until(lambda: _state(deployment, task_id) == "completed")
        # Resolved after its log was kept: whoever sees the end finds the log.
        assert deployment.content(task_id, live)["storageType"] == "s3"
        out, _, _ = deployment.run("task", "log", task_id)
        assert out.encode() == followed
        kept = httpx.get(
            f"{deployment.url}/api/queue/v1/task/{task_id}/artifacts/{live}", follow_redirects=True
        )
        assert kept.content == followed
        assert kept.headers["content-type"] == "text/plain; charset=utf-8"
    finally:
        follower.kill()
        follower.communicate()
        worker.terminate()
        worker.communicate(timeout=PATIENCE_S)


def test_logs_of_several_runs(deployment: Deployment) -> None:
    mark = deployment.folder / "mark"
    command = f"echo run $RUN_ID; if [ ! -e {mark} ]; then touch {mark}; exit 75; fi"
    payload = {"command": command, "onExitStatus": {"retry": [75]}}
    (deployment.folder / "payload.json").write_text(json.dumps(payload))
    out, errors, code = deployment.run(
        "task", "create", "-q", "live/logs", "--payload", "payload.json", "--json"
    )
    if code != 0:  # the option takes JSON text
        out, errors, code = deployment.run(
            "task", "create", "-q", "live/logs", "--payload", json.dumps(payload), "--json"
        )
    assert code == 0, errors
    task_id = json.loads(out)["taskId"]
    worker = deployment.start("worker", "live/logs")
    try:
        _until(lambda: _state(deployment, task_id) == "completed")
        assert "run 1\n" in deployment.run("task", "log", task_id)[0]
        assert "run 0\n" in deployment.run("task", "log", task_id, "--run", "0")[0]
        assert "has no log" in deployment.run("task", "log", task_id, "--run", "7")[1]
    finally:
        worker.terminate()
        worker.communicate(timeout=PATIENCE_S)


def test_a_worker_may_keep_its_logs_to_itself(deployment: Deployment) -> None:
    task_id = deployment.create("echo quiet")
    worker = deployment.start("worker", "live/logs", "--live-log", "off")
    try:
        _until(lambda: _state(deployment, task_id) == "completed")
        assert deployment.content(task_id, "public/logs/live.log") == {}
        assert "quiet\n" in deployment.run("task", "log", task_id, "--log-dir", "data/logs")[0]
    finally:
        worker.terminate()
        worker.communicate(timeout=PATIENCE_S)
