"""`tcqueue demo`: the main job on real work. A fresh queue, this repository's own build as a graph of
tasks, workers that execute it, and one of them killed on the way."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import click
import grpc.aio

from server.cli.base import CONTEXT, DURATION, CommandError, from_now, print_table, span
from server.cli.databases import identity, quiet
from server.cli.demo_processes import DemoProcess, Deployment, plain_environment
from server.cli.graphs import read_graph
from server.cli.shown import run_time, run_word, run_worker
from server.cli.watching import GroupProgress, shown_live
from server.client.channel import open_aio_channel
from server.client.credentials import Credentials
from server.client.errors import failure_of
from server.config import Settings
from server.domain import slugid
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.run_pb2 import RunState
from tcqueue.v1.task_group_pb2 import WatchTaskGroupRequest, WatchTaskGroupResponse
from tcqueue.v1.task_pb2 import CreateTasksRequest, TaskState, TaskStatus

_QUEUE = "demo/build"
_GROUP = "demo"
#: How long the demo's folder is tried to be removed.
_REMOVAL_S = 10.0

#: The task whose worker is killed: it takes a few seconds and nothing waits for it but the summary.
_VICTIM = "unit-domain"
_SUMMARY = "summary"
_TAIL_LINES = 30
_KILL_AFTER_S = 0.6


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue demo
  tcqueue demo --workers 4 --keep        leaves logs, database and results for you to look at
""",
)
@click.option("--workers", type=click.IntRange(2, 16), default=3, show_default=True, help="Worker processes.")
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill a worker on the way.")
@click.option("--keep", is_flag=True, help="Leave the folder with everything in it.")
@click.option("--timeout", type=DURATION, default=300.0, help="Give up after this long. [default: 5m]")
@click.option(
    "--repository", type=click.Path(path_type=Path), help="The repository to build. [default: this one]"
)
def demo(workers: int, kill: bool, keep: bool, timeout: float, repository: Path | None) -> None:
    """Watch the whole thing work, in less than a minute.

    Starts a fresh queue on free ports in a temporary folder, creates this repository's build (compile
    the stubs, lint, unit tests, wheel, summary) as one graph, runs it on several workers and kills one
    of them with SIGKILL while it is at work, so that you see its task retried.
    """
    root = (repository or Path(__file__).parents[2]).resolve()
    graph = root / "examples" / "build" / "graph.json"
    if not graph.exists():
        raise CommandError(
            f"{root} is not the repository of tcqueue", "clone it, or name it with --repository"
        )
    folder = Path(tempfile.mkdtemp(prefix="tcqueue-demo-"))
    try:
        succeeded = asyncio.run(_Demo(root, folder, workers, kill).run(timeout))
    finally:
        if not keep:
            _remove(folder)
    if keep:
        click.echo(f"everything is in {folder}")
    if not succeeded:
        sys.exit(1)


def _remove(folder: Path) -> None:
    """Removes a folder in which what was killed may be dying still, and writing."""
    end = time.monotonic() + _REMOVAL_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > end:
            return
        if folder.exists():
            time.sleep(0.05)


class _Demo:
    def __init__(self, repository: Path, folder: Path, workers: int, kill: bool) -> None:
        self._repository = repository
        self._folder = folder
        self._wanted = workers
        self._kill = kill
        self._began = time.monotonic()
        self._workers: dict[str, DemoProcess] = {}
        self._killed = ""
        self._killer: asyncio.Task[None] | None = None
        self._say: Callable[[str], None] = click.echo

    async def run(self, timeout_s: float) -> bool:
        """Runs the demo; whether every task completed, and the killed one in a second run."""
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, main.cancel)
        try:
            return await self._bounded(timeout_s)
        except asyncio.CancelledError:
            raise click.Abort from None

    async def _bounded(self, timeout_s: float) -> bool:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._run(stack)
            except TimeoutError:
                raise CommandError(f"the demo took longer than {span(timeout_s)}") from None
            except grpc.aio.AioRpcError as e:
                raise CommandError(f"the queue failed: {failure_of(e).message}") from None

    async def _run(self, stack: AsyncExitStack) -> bool:
        self._step("starting a fresh queue: PostgreSQL, gRPC, loops")
        deployment = await Deployment.start(self._folder)
        stack.push_async_callback(deployment.server.stop)
        self._step(f"serving on {deployment.address}; starting {self._wanted} workers on {_QUEUE}")
        environment = await self._worker_environment(deployment)
        for number in range(1, self._wanted + 1):
            name = f"worker-{number}"
            arguments = ["worker", _QUEUE, "--group", _GROUP, "--id", name, "--log-dir", "logs"]
            # Once the demo is over, or interrupted, nobody waits for what still runs.
            arguments += ["--grace", "0"]
            worker = await DemoProcess.start(name, arguments, self._folder, environment)
            self._workers[name] = worker
            stack.push_async_callback(worker.stop)
        channel = await stack.enter_async_context(open_aio_channel(deployment.address))
        credentials = Credentials(deployment.client_id, deployment.access_token)
        progress = await self._follow(channel, credentials)
        return self._conclude(progress)

    async def _worker_environment(self, deployment: Deployment) -> dict[str, str]:
        """Workers get a client of their own, which may do what workers do and no more."""
        quiet()
        settings = Settings(data_dir=str(self._folder / "data"))
        async with identity(settings) as (clients, _):
            _, access_token = await clients.create(
                "demo/worker",
                description="the demo's workers",
                expires=from_now(3600),
                scopes=[f"queue:claim-work:{_QUEUE}", f"queue:worker-id:{_GROUP}/*"],
                actor="demo",
            )
        return {
            **plain_environment(),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TCQUEUE_CLIENT_ADDRESS": deployment.address,
            "TCQUEUE_CLIENT_ID": "demo/worker",
            "TCQUEUE_CLIENT_ACCESS_TOKEN": access_token,
        }

    async def _follow(self, channel: grpc.aio.Channel, credentials: Credentials) -> GroupProgress:
        """Creates the graph in one call and follows it to its end."""
        group_id = slugid.nice()
        out = self._folder / "out"
        out.mkdir()
        env = {"REPO": str(self._repository), "PYTHON": sys.executable, "OUT": str(out)}
        document = json.loads((self._repository / "examples" / "build" / "graph.json").read_text())
        tasks, names = read_graph(document, group_id, task_queue_id=_QUEUE, env=env)
        stub = QueueStub(channel)
        self._step(f"creating the build of {self._repository.name}: {len(tasks)} tasks in one call")
        await stub.CreateTasks(CreateTasksRequest(tasks=tasks), metadata=credentials.metadata())
        progress = GroupProgress(names, began=self._began)
        request = WatchTaskGroupRequest(task_group_id=group_id)
        click.echo()
        with shown_live(progress) as say:
            self._say = say
            answers = stub.WatchTaskGroup(request, metadata=credentials.metadata())
            work = [asyncio.create_task(self._consume(answers, progress)), *self._guards()]
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in work:
                    task.cancel()
        self._say = click.echo
        return progress

    async def _consume(self, answers: AsyncIterable[WatchTaskGroupResponse], progress: GroupProgress) -> None:
        async for answer in answers:
            for status in answer.statuses:
                line = progress.update(status)
                if line and not sys.stdout.isatty():
                    self._say(line)
                self._look_for_victim(status, progress.names[status.task_id])
            progress.resolved = answer.resolved
            if progress.stuck:
                return

    def _look_for_victim(self, status: TaskStatus, name: str) -> None:
        if not self._kill or self._killed or name != _VICTIM or not status.runs:
            return
        run = status.runs[-1]
        if run.state == RunState.RUN_STATE_RUNNING:
            self._killed = run.worker_id
            self._killer = asyncio.create_task(self._kill_soon(name))

    async def _kill_soon(self, task: str) -> None:
        # Long enough that the command is well under way, short enough that it is not done.
        await asyncio.sleep(_KILL_AFTER_S)
        worker = self._workers[self._killed]
        worker.kill()
        seconds = time.monotonic() - self._began
        text = f"SIGKILL for {worker.name}, which was running {task}: its stream breaks, its run is retried"
        self._say(click.style(f"{seconds:6.1f}s  {text}", fg="red"))

    def _guards(self) -> list[asyncio.Task[None]]:
        """One for each worker: ends with an error when the worker ends unasked."""

        async def guard(worker: DemoProcess) -> None:
            await worker.ended()
            if worker.name != self._killed:
                raise CommandError(f"{worker.name} ended unasked:\n{worker.tail()}")
            await asyncio.Event().wait()

        return [asyncio.create_task(guard(worker)) for worker in self._workers.values()]

    def _conclude(self, progress: GroupProgress) -> bool:
        """Says how it went."""
        names = progress.names
        click.echo()
        rows = [
            (
                names[status.task_id] if run.run_id == 0 else "",
                str(run.run_id),
                run_word(run),
                run_worker(run),
                run_time(run),
            )
            for status in progress.in_order()
            for run in status.runs
        ]
        print_table(("task", "run", "state", "worker", "took"), rows)
        failed = [s for s in progress.statuses.values() if s.state != TaskState.TASK_STATE_COMPLETED]
        for status in failed:
            self._show_log(f"log of {names[status.task_id]}", status)
        if failed or not progress.resolved:
            click.echo(f"\n{len(failed)} of {len(progress.statuses)} tasks did not complete", err=True)
            return False
        for status in progress.statuses.values():
            if names[status.task_id] == _SUMMARY:
                self._show_log("what the summary task printed", status)
        retried = [names[s.task_id] for s in progress.statuses.values() if len(s.runs) > 1]
        seconds = span(time.monotonic() - self._began)
        again = f", {retried[0]} in its second run after {self._killed} was killed" if retried else ""
        click.echo(
            click.style(f"\nall {len(progress.statuses)} tasks completed in {seconds}{again}", fg="green")
        )
        if self._kill and not retried:
            click.echo("but nothing was retried: the worker was killed too late, or not at all", err=True)
            return False
        return True

    def _show_log(self, title: str, status: TaskStatus) -> None:
        if not status.runs:
            return
        file = self._folder / "logs" / status.task_id / f"{status.runs[-1].run_id}.log"
        click.echo(f"\n{click.style(title, bold=True)}")
        text = file.read_text(errors="replace") if file.exists() else "there is none"
        for line in text.splitlines()[-_TAIL_LINES:]:
            click.echo(f"  {line}")

    def _step(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._began:6.1f}s  {text}")
        sys.stdout.flush()
