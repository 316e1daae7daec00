"""Runs a task's command: its folder, environment, log, time limit, and its end in every way."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from server.cli.base import span
from server.cli.payload import Job, PayloadError, read_payload
from server.client.credentials import CREDENTIALS_FILE
from server.client.held_runs import (
    COMPLETED,
    FAILED,
    INTERMITTENT_TASK,
    MALFORMED_PAYLOAD,
    RESOURCE_UNAVAILABLE,
    HeldRun,
    Result,
)

_GUARD = str(Path(__file__).with_name("guard.py"))
#: Between asking a command to end and ending it.
_KILL_S = 5.0
_CHUNK = 65536

#: Called with a piece of a run's output, as it comes; lines may be cut anywhere.
Echo = Callable[[HeldRun, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where an executor keeps things. `keep` leaves finished runs' folders for people to look at."""

    work_dir: Path
    log_dir: Path
    address: str
    keep: bool = False


class Executor:
    """Runs commands one by one as asked; each in a folder and a process group of its own."""

    def __init__(self, places: Places, environ: Mapping[str, str], echo: Echo | None) -> None:
        self._places = places
        # The worker's own credentials are not for tasks.
        self._base = {
            name: value
            for name, value in environ.items()
            if not name.startswith(("TCQUEUE_", "TASKCLUSTER_")) and name != "DATABASE_URL"
        }
        self._echo = echo

    def log_file(self, run: HeldRun) -> Path:
        """The run's log."""
        return self._places.log_dir / run.task_id / f"{run.run_id}.log"

    def keep_credentials(self, run: HeldRun) -> None:
        """Writes the run's latest credentials where its command finds them."""
        folder = self._folder(run)
        if folder.exists():
            _write_privately(folder / "credentials.json", _credentials(run))

    async def execute(self, run: HeldRun) -> Result:
        """Runs the command to its end. Cancelled, it kills the command first, and waits for it."""
        file = self.log_file(run)
        folder = self._folder(run)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for part in ("work", "tmp"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            log = file.open("wb", buffering=0)
        except OSError as e:
            print(f"cannot prepare {run.task_id}/{run.run_id}: {e}", file=sys.stderr)
            return RESOURCE_UNAVAILABLE
        try:
            with log:
                self._note(run, log, f"task {run.task_id} run {run.run_id}: {run.name}")
                try:
                    job = read_payload(run.payload)
                except PayloadError as e:
                    self._note(run, log, f"malformed payload: {e}")
                    return MALFORMED_PAYLOAD
                return await self._run(run, job, log, folder)
        finally:
            if not self._places.keep:
                shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, run: HeldRun, job: Job, log: BinaryIO, folder: Path) -> Result:
        _write_privately(folder / "credentials.json", _credentials(run))
        began = time.monotonic()
        # A pipe of our own: one of asyncio's would make `wait` wait for whatever holds its other end.
        output, given = os.pipe() if self._echo else (None, None)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", _GUARD),
                *job.argv,
                stdin=PIPE,
                stdout=log if given is None else given,
                stderr=asyncio.subprocess.STDOUT,
                cwd=folder / "work",
                env=self._environment(run, job, folder),
                start_new_session=True,
            )
        except BaseException:
            if output is not None:
                os.close(output)
            raise
        finally:
            if given is not None:
                os.close(given)
        copying = asyncio.create_task(self._copy(run, output, log))
        try:
            async with asyncio.timeout(job.max_run_time_s):
                code = await process.wait()
        except TimeoutError:
            await _kill(process)
            self._note(run, log, f"stopped: it ran longer than payload.maxRunTime ({job.max_run_time_s:g} s)")
            return FAILED
        except asyncio.CancelledError:
            self._note(run, log, "stopped: the run was revoked or the worker is shutting down")
            await _kill(process)
            raise
        finally:
            # Whatever the command left running goes with it; the log is complete then.
            _signal_group(process, signal.SIGKILL)
            await _ended(copying)
        self._note(run, log, f"exit {code} after {span(time.monotonic() - began)}")
        if code in job.retry_codes:
            return INTERMITTENT_TASK
        return COMPLETED if code == 0 else FAILED

    async def _copy(self, run: HeldRun, output: int | None, log: BinaryIO) -> None:
        if output is None or self._echo is None:
            return
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while data := await reader.read(_CHUNK):
                log.write(data)
                self._echo(run, decoder.decode(data))
        finally:
            transport.close()

    def _note(self, run: HeldRun, log: BinaryIO, text: str) -> None:
        line = f"[tcqueue {datetime.now(UTC):%H:%M:%S}] {text}\n"
        log.write(line.encode())
        if self._echo is not None:
            self._echo(run, line)

    def _folder(self, run: HeldRun) -> Path:
        return self._places.work_dir / f"{run.task_id}-{run.run_id}"

    def _environment(self, run: HeldRun, job: Job, folder: Path) -> dict[str, str]:
        """Ours without its secrets, the payload's, and what the task may know about itself."""
        credentials = run.credentials
        return {
            **self._base,
            # What a command that is killed leaves there goes with the run's folder.
            "TMPDIR": str(folder.resolve() / "tmp"),
            **job.env,
            "TASK_ID": run.task_id,
            "RUN_ID": str(run.run_id),
            "TASK_GROUP_ID": run.task.task_group_id,
            "TASKCLUSTER_CLIENT_ID": credentials.client_id,
            "TASKCLUSTER_ACCESS_TOKEN": credentials.access_token,
            "TASKCLUSTER_CERTIFICATE": credentials.certificate,
            # These are kept fresh when the claim is renewed; the variables above cannot be.
            CREDENTIALS_FILE: str(folder.resolve() / "credentials.json"),
            "TCQUEUE_CLIENT_ADDRESS": self._places.address,
        }


async def _kill(process: Process) -> None:
    """Asks the whole process group to end, and ends it if it does not."""
    _signal_group(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_KILL_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def _ended(task: asyncio.Task[None]) -> None:
    """Waits for a task that has nothing more to wait for itself; gives it up soon if it has."""
    done, _ = await asyncio.wait([task], timeout=_KILL_S)
    if not done:
        task.cancel()


def _credentials(run: HeldRun) -> str:
    held = run.credentials
    return json.dumps(
        {"clientId": held.client_id, "accessToken": held.access_token, "certificate": held.certificate}
    )


def _write_privately(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    draft.replace(file)
