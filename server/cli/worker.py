"""`tcqueue worker`: a small real worker."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from server.cli.base import CONTEXT, DURATION, moment, print_json_line, span
from server.cli.calls import Connection, connection_from_env
from server.cli.executor import Executor, Places
from server.cli.live_logs import LogPublisher, LogServer
from server.client.channel import open_aio_channel
from server.client.errors import CallError, Failure
from server.client.held_runs import HeldRun
from server.client.json_form import word
from server.client.stream_worker import Execute, StreamWorker, WorkerId
from tcqueue.v1.claim_pb2 import Outcome, RevocationReason
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_pb2 import TaskState

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue worker demo/linux
  tcqueue worker demo/linux --slots 4 --group rack-1 --id machine-7 --show-logs

\b
Payload it understands:
  {"command": "make test"}                  a text for sh -c, or a list: program, arguments
  {"env": {"CI": "1"}}                      variables for the command
  {"maxRunTime": 600}                       seconds; longer fails
  {"onExitStatus": {"retry": [75]}}         these exit codes ask for another attempt

\b
Results: exit code 0 completes the task, another one fails it, a payload it cannot read is
malformed-payload, and SIGTERM hands back what runs as worker-shutdown, to be retried elsewhere.
A command finds TASK_ID, RUN_ID and the task's own credentials (TASKCLUSTER_CLIENT_ID,
TASKCLUSTER_ACCESS_TOKEN, TASKCLUSTER_CERTIFICATE) in its environment, and the latest ones in
the file TCQUEUE_CLIENT_CREDENTIALS_FILE, which `tcqueue` itself reads too.


Logs are artifacts: public/logs/live.log leads to the log while it grows, and to
public/logs/live_backing.log afterwards. `tcqueue task log --follow TASK` shows them.
""",
)
@click.argument("task_queue_id", metavar="QUEUE")
@click.option("--slots", type=click.IntRange(1, 1024), default=1, show_default=True, help="Runs at once.")
@click.option("--group", "worker_group", default="local", show_default=True, help="The worker's group.")
@click.option("--id", "worker_id", help="Its id, unique in the group. [default: host and process]")
@click.option(
    "--log-dir",
    envvar="TCQUEUE_CLIENT_LOG_DIR",
    default="data/logs",
    show_default=True,
    help="Where logs go: TASK_ID/RUN_ID.log (TCQUEUE_CLIENT_LOG_DIR).",
)
@click.option(
    "--work-dir", default="data/work", show_default=True, help="Where each run gets a folder of its own."
)
@click.option("--keep", is_flag=True, help="Leave the folders of finished runs.")
@click.option(
    "--live-log",
    "live_log",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Where running tasks' logs are served, for artifacts to lead there; `off` publishes no logs.",
)
@click.option(
    "--live-log-url", default="", help="What others know that address by. [default: http://HOST:PORT]"
)
@click.option("--show-logs", is_flag=True, help="Print what commands print, with the task's name before it.")
@click.option("--drain", is_flag=True, help="On SIGTERM, finish what runs, however long that takes.")
@click.option(
    "--grace",
    type=DURATION,
    default=10.0,
    help="On SIGTERM, time for what still runs. [default: 10s]",
)
@click.option("--json", "as_json", is_flag=True, help="Print an event a line as JSON.")
@click.option("--address", metavar="HOST:PORT", help="Where the queue is. [default: TCQUEUE_CLIENT_ADDRESS]")
def worker(
    task_queue_id: str,
    slots: int,
    worker_group: str,
    worker_id: str | None,
    log_dir: str,
    work_dir: str,
    keep: bool,
    live_log: str,
    live_log_url: str,
    show_logs: bool,
    drain: bool,
    grace: float,
    as_json: bool,
    address: str | None,
) -> None:
    """Take runs from QUEUE on a stream and execute their commands.

    SIGTERM or Ctrl-C ends it politely, a second one at once.
    """
    connection = connection_from_env(address)
    identity = WorkerId(
        task_queue_id=task_queue_id,
        worker_group=worker_group,
        worker_id=worker_id or _NOT_IN_NAMES.sub("-", f"{socket.gethostname()[:28]}-{os.getpid()}"),
    )
    places = Places(
        work_dir=Path(work_dir).resolve() / f"{identity.worker_group}-{identity.worker_id}",
        log_dir=Path(log_dir).resolve(),
        address=connection.address if connection.tls is None else f"https://{connection.address}",
        keep=keep,
    )
    # What a worker of the same name left behind when it was killed.
    shutil.rmtree(places.work_dir, ignore_errors=True)
    reporter = Reporter(as_json=as_json)
    executor = Executor(places, os.environ, reporter.echo if show_logs and not as_json else None)
    reporter.keep_credentials = executor.keep_credentials
    name = f"{identity.worker_group}/{identity.worker_id}"
    reporter.say("waiting", f"{task_queue_id} as {name}", taskQueueId=task_queue_id, worker=name, slots=slots)
    try:
        logs = None if live_log == "off" else LogServer(live_log, live_log_url)
        asyncio.run(_work(connection, identity, executor, logs, reporter, slots, None if drain else grace))
    finally:
        if not keep:
            shutil.rmtree(places.work_dir, ignore_errors=True)
    reporter.say("stopped", "")


async def _work(
    connection: Connection,
    identity: WorkerId,
    executor: Executor,
    logs: LogServer | None,
    reporter: Reporter,
    slots: int,
    grace_s: float | None,
) -> None:
    """Works until told to stop; `grace_s` of None finishes what runs. `logs` of None publishes none."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_aio_channel(connection.address, connection.tls))
        execute: Execute = executor.execute
        if logs is not None:
            await logs.open()
            stack.push_async_callback(logs.close)
            execute = LogPublisher(logs, channel, executor.execute, executor.log_file).execute
        stream_worker = StreamWorker(
            channel, connection.credentials, identity, execute, reporter, slots=slots
        )
        stopping = _Stopping(stream_worker, reporter, grace_s)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.asked)
        try:
            await stream_worker.run()
        except CallError as e:
            raise connection.error(e.failure) from None
        await stopping.finished()


class _Stopping:
    """What signals do: the first ends politely, the second at once."""

    def __init__(self, worker: StreamWorker, reporter: Reporter, grace_s: float | None) -> None:
        self._worker = worker
        self._reporter = reporter
        self._grace_s = grace_s
        self._tasks: list[asyncio.Task[None]] = []
        self._times = 0

    def asked(self) -> None:
        """A signal came."""
        self._times += 1
        if self._times == 1 and self._grace_s is None:
            self._reporter.say("draining", "finishing what runs; again to stop it")
            self._worker.drain()
        else:
            grace_s = (self._grace_s or 0.0) if self._times == 1 else 0.0
            if self._worker.runs:
                text = f"what runs may take another {span(grace_s)}" if grace_s else "what runs is stopped"
                self._reporter.say("stopping", text)
            self._tasks.append(asyncio.create_task(self._worker.shut_down(grace_s)))

    async def finished(self) -> None:
        """Returns when nothing of it is under way; a grace that nobody needs any more is cut short."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Reporter:
    """Says what happens, a line for each thing; a Listener of the stream worker."""

    def __init__(self, *, as_json: bool) -> None:
        self.keep_credentials: Callable[[HeldRun], None] = lambda run: None
        self._as_json = as_json
        self._began: dict[HeldRun, float] = {}
        self._partial: dict[HeldRun, str] = {}

    def say(self, event: str, text: str, run: HeldRun | None = None, **facts: Any) -> None:
        """One line: the time, what happened, and to what."""
        if self._as_json:
            named = {} if run is None else {"taskId": run.task_id, "runId": run.run_id, "name": run.name}
            print_json_line({"event": event, **named, **facts})
            return
        subject = "" if run is None else f"{run.task_id}/{run.run_id}  {run.name}  "
        color = _COLORS.get(event)
        shown = click.style(f"{event:<10}", fg=color) if color else f"{event:<10}"
        click.echo(f"{datetime.now():%H:%M:%S}  {shown}  {subject}{text}".rstrip())
        sys.stdout.flush()

    def echo(self, run: HeldRun, text: str) -> None:
        """Prints whole lines of a command's output behind the task's name."""
        *lines, rest = (self._partial.pop(run, "") + text).split("\n")
        if rest:
            self._partial[run] = rest
        for line in lines:
            click.echo(f"{click.style(f'[{run.name}]', dim=True)} {line}")
        sys.stdout.flush()

    def claimed(self, run: HeldRun) -> None:
        self._began[run] = time.monotonic()
        self.say("claimed", "", run)

    def renewed(self, run: HeldRun) -> None:
        self.keep_credentials(run)

    def revoked(self, run: HeldRun) -> None:
        reason = word(RevocationReason.DESCRIPTOR, run.revocation or 0)
        self.say("revoked", reason, run, reason=reason)

    def resolved(self, run: HeldRun, state: TaskState.ValueType, error: str) -> None:
        took = time.monotonic() - self._began.pop(run, time.monotonic())
        if error:
            self.say("refused", error, run, error=error)
            return
        resolution = run.resolution
        result = word(Outcome.DESCRIPTOR, resolution.outcome if resolution else 0)
        reason = word(ReasonResolved.DESCRIPTOR, resolution.reason if resolution else 0)
        text = "  ".join(filter(None, [reason, span(took)]))
        self.say(
            result,
            text,
            run,
            reason=reason or result,
            seconds=took,
            taskState=word(TaskState.DESCRIPTOR, state),
        )

    def quarantined(self, until: datetime | None) -> None:
        if until is None:
            self.say("unlocked", "no longer quarantined")
        else:
            self.say("locked", f"quarantined until {moment(until)}", until=until.isoformat())

    def disconnected(self, failure: Failure, pause_s: float) -> None:
        self.say("lost", f"{failure.message}; trying again in {span(pause_s)}", error=failure.message)

    def crashed(self, run: HeldRun, error: Exception) -> None:
        self.say("crashed", f"{type(error).__name__}: {error}", run, error=str(error))


_COLORS = {
    "claimed": "cyan",
    "completed": "green",
    "failed": "red",
    "exception": "magenta",
    "revoked": "yellow",
    "refused": "yellow",
    "lost": "yellow",
    "locked": "yellow",
    "crashed": "red",
}
