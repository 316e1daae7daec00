"""What the worker does with a payload: commands, their surroundings, their ends."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.cli import guard
from server.cli.executor import Executor, Places
from server.cli.payload import PayloadError, read_payload
from server.client.held_runs import (
    COMPLETED,
    FAILED,
    INTERMITTENT_TASK,
    MALFORMED_PAYLOAD,
    RESOURCE_UNAVAILABLE,
    HeldRun,
    Result,
)
from server.domain import slugid
from tcqueue.v1.claim_pb2 import Claim, ReclaimedRun, TaskCredentials
from tcqueue.v1.task_pb2 import TaskDefinition, TaskMetadata, TaskStatus


def held(payload: Any) -> HeldRun:
    """A claimed run with this payload."""
    claim = Claim(
        status=TaskStatus(task_id=slugid.nice()),
        run_id=0,
        task=TaskDefinition(
            payload=json.dumps(payload), metadata=TaskMetadata(name="a task"), task_group_id="group"
        ),
        credentials=TaskCredentials(client_id="task-client/x", access_token="secret", certificate="{}"),
    )
    claim.taken_until.FromDatetime(datetime.now(UTC) + timedelta(minutes=20))
    return HeldRun(claim)


class Bench:
    """An executor in a folder of its own."""

    def __init__(self, folder: Path, **places: Any) -> None:
        self.folder = folder
        self.echoed = ""
        self.places = Places(work_dir=folder / "work", log_dir=folder / "logs", address="q:1", **places)
        environ = {
            "PATH": os.environ["PATH"],
            "TCQUEUE_CLIENT_ACCESS_TOKEN": "the worker's",
            "TASKCLUSTER_CLIENT_ID": "the worker's",
            "DATABASE_URL": "the server's",
            "KEPT": "yes",
        }
        self.executor = Executor(self.places, environ, None)
        self.showing = Executor(self.places, environ, self.echo)

    def echo(self, run: HeldRun, text: str) -> None:
        self.echoed += text

    async def run(self, payload: Any) -> tuple[Result, str]:
        """Executes a payload; the result and what the command wrote, without our own lines."""
        run = held(payload)
        result = await self.executor.execute(run)
        lines = self.executor.log_file(run).read_text().splitlines()
        return result, "\n".join(line for line in lines if not line.startswith("[tcqueue "))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# -- payloads


def test_a_payload_is_read() -> None:
    job = read_payload({"command": ["make", "-j"], "env": {"A": "b"}, "maxRunTime": 60})
    assert (list(job.argv), dict(job.env), job.max_run_time_s) == (["make", "-j"], {"A": "b"}, 60.0)
    assert job.retry_codes == frozenset()
    assert list(read_payload({"command": "a | b"}).argv) == ["/bin/sh", "-c", "a | b"]
    assert read_payload({"command": "a", "onExitStatus": {"retry": [75, 1]}}).retry_codes == {75, 1}


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ([], "the payload must be an object"),
        ({}, "payload.command must be a text for the shell, or a list"),
        ({"command": ""}, "payload.command must be"),
        ({"command": []}, "payload.command must be"),
        ({"command": ["a", 1]}, "payload.command must be"),
        ({"command": ["a\0"]}, "NUL"),
        ({"command": "a", "image": "x"}, "payload.image is not known here; there are command, env"),
        ({"command": "a", "env": {"A": 1}}, "payload.env must be an object of texts"),
        ({"command": "a", "env": {"A=": "1"}}, "payload.env has the impossible name"),
        ({"command": "a", "maxRunTime": 0}, "payload.maxRunTime must be a number of seconds above 0"),
        ({"command": "a", "maxRunTime": True}, "payload.maxRunTime must be"),
        ({"command": "a", "onExitStatus": {"retry": ["x"]}}, "payload.onExitStatus must be"),
    ],
)
def test_what_a_payload_cannot_be(payload: Any, text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        read_payload(payload)
    assert text in str(caught.value)


# -- results


@pytest.mark.parametrize(
    ("payload", "result"),
    [
        ({"command": "true"}, COMPLETED),
        ({"command": ["sh", "-c", "exit 3"]}, FAILED),
        ({"command": ["no-such-program"]}, FAILED),
        ({"command": "kill -9 $$"}, FAILED),
        ({"command": "exit 75", "onExitStatus": {"retry": [75]}}, INTERMITTENT_TASK),
        ({"command": "exit 74", "onExitStatus": {"retry": [75]}}, FAILED),
        ({"command": 7}, MALFORMED_PAYLOAD),
    ],
)
async def test_results(bench: Bench, payload: Any, result: Result) -> None:
    found, _ = await bench.run(payload)
    assert found == result


async def test_the_log_says_what_happened(bench: Bench) -> None:
    run = held({"command": "echo out; echo err >&2; exit 3"})
    assert await bench.executor.execute(run) == FAILED
    log = bench.executor.log_file(run)
    assert log == bench.folder / "logs" / run.task_id / "0.log"
    first, *middle, last = log.read_text().splitlines()
    assert first.endswith(f"task {run.task_id} run 0: a task")
    assert middle == ["out", "err"]
    assert "exit 3 after" in last


async def test_a_missing_program_is_named(bench: Bench) -> None:
    _, output = await bench.run({"command": ["no-such-program"]})
    assert output == "no-such-program: No such file or directory"


async def test_a_malformed_payload_is_explained_in_the_log(bench: Bench) -> None:
    run = held({"command": 7})
    await bench.executor.execute(run)
    assert "malformed payload: payload.command must be" in bench.executor.log_file(run).read_text()


async def test_output_is_shown_when_asked_for(bench: Bench) -> None:
    run = held({"command": "printf 'caf\\303'; printf '\\251\\n'"})
    assert await bench.showing.execute(run) == COMPLETED
    assert "café\n" in bench.echoed
    assert "exit 0" in bench.echoed
    assert bench.showing.log_file(run).read_text() == bench.echoed


async def test_a_place_that_cannot_be_had_is_no_fault_of_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").write_text("in the way")
    assert await Bench(tmp_path).executor.execute(held({"command": "true"})) == RESOURCE_UNAVAILABLE
    assert "cannot prepare" in capsys.readouterr().err


# -- surroundings


async def test_a_command_finds_its_own_credentials_and_not_the_workers(bench: Bench) -> None:
    _, output = await bench.run({"command": "env", "env": {"MINE": "1", "TASK_ID": "forged"}})
    env = dict(line.split("=", 1) for line in output.splitlines())
    assert (env["MINE"], env["KEPT"], env["RUN_ID"], env["TASK_GROUP_ID"]) == ("1", "yes", "0", "group")
    assert slugid.is_slugid(env["TASK_ID"])
    assert env["TASKCLUSTER_CLIENT_ID"] == "task-client/x"
    assert (env["TASKCLUSTER_ACCESS_TOKEN"], env["TASKCLUSTER_CERTIFICATE"]) == ("secret", "{}")
    assert env["TCQUEUE_CLIENT_ADDRESS"] == "q:1"
    assert "TCQUEUE_CLIENT_ACCESS_TOKEN" not in env and "DATABASE_URL" not in env


async def test_renewed_credentials_reach_a_running_command(bench: Bench) -> None:
    run = held({"command": 'echo > ../ready; read x < ../go; cat "$TCQUEUE_CLIENT_CREDENTIALS_FILE"'})
    ready, go = _fifos(bench, run, "ready", "go")
    running = asyncio.create_task(bench.executor.execute(run))
    await asyncio.to_thread(ready.read_bytes)
    assert (ready.parent / "credentials.json").stat().st_mode & 0o777 == 0o600
    run.renew(ReclaimedRun(credentials=TaskCredentials(client_id="fresh", access_token="f")))
    bench.executor.keep_credentials(run)
    await asyncio.to_thread(go.write_bytes, b"\n")
    assert await running == COMPLETED
    assert '"clientId": "fresh"' in bench.executor.log_file(run).read_text()


async def test_each_run_has_a_folder_which_goes_with_it(tmp_path: Path) -> None:
    for keep, left in ((False, []), (True, ["made"])):
        bench = Bench(tmp_path / str(keep), keep=keep)
        run = held({"command": "touch made; ls"})
        await bench.executor.execute(run)
        folder = bench.places.work_dir / f"{run.task_id}-0" / "work"
        assert sorted(file.name for file in folder.glob("*")) == left


async def test_standard_input_is_empty(bench: Bench) -> None:
    assert await bench.run({"command": "cat; echo end"}) == (COMPLETED, "end")


# -- ends


async def test_what_takes_too_long_fails(bench: Bench) -> None:
    result, output = await bench.run({"command": "echo begun; sleep 600", "maxRunTime": 0.3})
    assert (result, output) == (FAILED, "begun")


async def test_a_cancelled_run_takes_its_whole_process_group_along(bench: Bench) -> None:
    run = held({"command": "sleep 600 & echo $! > ../ready; wait"})
    (ready,) = _fifos(bench, run, "ready")
    running = asyncio.create_task(bench.executor.execute(run))
    child = int(await asyncio.to_thread(ready.read_bytes))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _gone(child)
    assert "stopped: the run was revoked" in bench.executor.log_file(run).read_text()


async def test_what_a_command_leaves_running_ends_with_it(bench: Bench) -> None:
    for executor in (bench.executor, bench.showing):
        run = held(
            {"command": "sleep 600 & echo $! > $PIDFILE", "env": {"PIDFILE": str(bench.folder / "pid")}}
        )
        assert await executor.execute(run) == COMPLETED
        await _gone(int((bench.folder / "pid").read_text()))


def test_the_guard_ends_the_command_when_its_worker_is_gone() -> None:
    command = "echo $$; exec sleep 600"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdout:
        child = int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL
    asyncio.run(_gone(child))


def test_the_guard_outlives_a_polite_signal_and_reports_how_the_command_ended() -> None:
    trap = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    for command, code in ((trap, 42), ("echo ready; exec sleep 600", 128 + signal.SIGTERM)):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, "sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        with process, process.stdout, process.stdin:
            assert process.stdout.readline() == b"ready\n"
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(10) == code


def _fifos(bench: Bench, run: HeldRun, *names: str) -> list[Path]:
    """Pipes to wait on, beside the command's folder: `../name` for the command."""
    folder = bench.places.work_dir / f"{run.task_id}-0"
    folder.mkdir(parents=True)
    for name in names:
        os.mkfifo(folder / name)
    return [folder / name for name in names]


async def _gone(pid: int) -> None:
    """Returns when a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(handle) as watched:
        readable, _, _ = await asyncio.to_thread(select.select, [watched], [], [], 20)
    assert readable, f"process {pid} still runs"
