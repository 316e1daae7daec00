"""Workers on streams: the client's StreamWorker against a real server, and `tcqueue worker` in a process
of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.client.channel import open_aio_channel
from server.client.credentials import Credentials
from server.client.errors import CallError, Failure
from server.client.held_runs import (
    COMPLETED,
    FAILED,
    INTERMITTENT_TASK,
    MALFORMED_PAYLOAD,
    HeldRun,
    Result,
    RunKey,
)
from server.client.json_form import word
from server.client.stream_worker import Backoff, StreamWorker, WorkerId
from server.dispatch.session import Session
from tcqueue.v1.claim_pb2 import ReclaimTaskRequest, RevocationReason
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_pb2 import CancelTaskRequest, TaskState, TaskStatus, WatchTaskRequest
from tcqueue.v1.worker_pb2 import QuarantineWorkerRequest
from tests.streams.harness import CHANNEL_OPTIONS, QUEUE, Client, Cluster, Instance
from tests.streams.proxy import Proxy
from tests.streams.serving import ServerProcess

PATIENCE_S = 20.0

Work = Callable[[HeldRun], Awaitable[Result]]


class Heard:
    """A Listener; whatever it is told waits in one queue for each kind."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[Any]] = {}

    def claimed(self, run: HeldRun) -> None:
        self._put("claimed", run)

    def renewed(self, run: HeldRun) -> None:
        self._put("renewed", run)

    def revoked(self, run: HeldRun) -> None:
        self._put("revoked", run)

    def resolved(self, run: HeldRun, state: TaskState.ValueType, error: str) -> None:
        self._put("resolved", (run.key, word(TaskState.DESCRIPTOR, state), error))

    def quarantined(self, until: datetime | None) -> None:
        self._put("quarantined", until)

    def disconnected(self, failure: Failure, pause_s: float) -> None:
        self._put("disconnected", failure)

    def crashed(self, run: HeldRun, error: Exception) -> None:
        self._put("crashed", (run.key, error))

    async def next(self, kind: str) -> Any:
        """The next thing of a kind."""
        return await asyncio.wait_for(self._queue(kind).get(), PATIENCE_S)

    def none(self, kind: str) -> bool:
        """Whether there was nothing of a kind, or all of it was taken."""
        return self._queue(kind).empty()

    def _put(self, kind: str, what: Any) -> None:
        self._queue(kind).put_nowait(what)

    def _queue(self, kind: str) -> asyncio.Queue[Any]:
        return self._queues.setdefault(kind, asyncio.Queue())


class Gate:
    """Work that ends when it is told to, as it is told to."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[HeldRun] = asyncio.Queue()
        self.cancelled: list[RunKey] = []
        self._results: dict[RunKey, asyncio.Future[Result]] = {}

    async def __call__(self, run: HeldRun) -> Result:
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[run.key] = result
        self.began.put_nowait(run)
        try:
            return await result
        except asyncio.CancelledError:
            self.cancelled.append(run.key)
            raise

    async def run(self) -> HeldRun:
        """The next run that began."""
        return await asyncio.wait_for(self.began.get(), PATIENCE_S)

    def end(self, run: HeldRun, result: Result = COMPLETED) -> None:
        """Ends a run's work."""
        self._results[run.key].set_result(result)


class Site:
    """A server's address, credentials, and workers that are shut down in the end."""

    def __init__(self, address: str, credentials: Credentials, root: Client, stack: AsyncExitStack) -> None:
        self.address = address
        self.credentials = credentials
        self.root = root
        self._stack = stack

    async def worker(
        self, execute: Work, *, slots: int = 1, name: str = "w1", address: str = "", **options: Any
    ) -> Worker:
        """Starts a worker."""
        channel = open_aio_channel(address or self.address, options=list(CHANNEL_OPTIONS))
        await self._stack.enter_async_context(channel)
        heard = Heard()
        identity = WorkerId(task_queue_id=QUEUE, worker_group="g", worker_id=name)
        options.setdefault("credentials", self.credentials)
        made = StreamWorker(
            channel,
            options.pop("credentials"),
            identity,
            execute,
            heard,
            slots=slots,
            backoff=Backoff(first_s=0.02, longest_s=0.1),
            **options,
        )
        task = asyncio.create_task(made.run())
        worker = Worker(made, heard, task)
        self._stack.push_async_callback(worker.stop)
        return worker

    async def running(self, *runs: HeldRun) -> None:
        """Returns when the queue has taken note that the worker accepted the runs."""
        for run in runs:
            request = WatchTaskRequest(task_id=run.task_id)
            async with asyncio.timeout(PATIENCE_S):
                async for answer in self.root.stub.WatchTask(request, metadata=self.root.metadata):
                    if answer.status.state == TaskState.TASK_STATE_RUNNING:
                        break

    async def state(self, task_id: str) -> str:
        """State and reasons of a task: `completed`, or `pending claim-expired/pending` with two runs."""
        return shown(await self.root.status(task_id))


def shown(status: TaskStatus) -> str:
    """A task's state, and what became of each run if there is more than one."""
    state = word(TaskState.DESCRIPTOR, status.state)
    if len(status.runs) < 2 and state != "exception":
        return state
    runs = [word(ReasonResolved.DESCRIPTOR, run.reason_resolved) or "open" for run in status.runs]
    return f"{state} {'/'.join(runs)}"


class Worker:
    """A running StreamWorker."""

    def __init__(self, worker: StreamWorker, heard: Heard, task: asyncio.Task[None]) -> None:
        self.stream = worker
        self.heard = heard
        self.task = task

    async def ended(self) -> None:
        """Returns when it has ended by itself."""
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE_S)

    async def stop(self) -> None:
        """Ends it, however it stands."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def cluster(dsn: str) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(dsn, stack)


@pytest.fixture
async def settings_of_site(request: pytest.FixtureRequest) -> dict[str, Any]:
    marker = request.node.get_closest_marker("settings")
    return dict(marker.kwargs) if marker else {}


@pytest.fixture
async def server(cluster: Cluster, settings_of_site: dict[str, Any]) -> Instance:
    return await cluster.start(**settings_of_site)


@pytest.fixture
async def site(cluster: Cluster, server: Instance) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        root = await cluster.client(server.address)
        yield Site(server.address, Credentials("root", cluster.root_token), root, stack)


@pytest.fixture
async def proxy(server: Instance) -> AsyncIterator[Proxy]:
    async with Proxy(server.address).open() as opened:
        yield opened


# -- runs and results


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (COMPLETED, "completed"),
        (FAILED, "failed"),
        (MALFORMED_PAYLOAD, "exception malformed-payload"),
        (INTERMITTENT_TASK, "running intermittent-task/open"),
    ],
)
async def test_what_the_work_returns_resolves_the_run(site: Site, result: Result, state: str) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    task_id = await site.root.create(payload=json.dumps({"number": 7}))
    run = await gate.run()
    assert (run.task_id, run.run_id, run.payload, run.name) == (task_id, 0, {"number": 7}, "a task")
    gate.end(run, result)
    key, _, error = await worker.heard.next("resolved")
    assert (key, error) == ((task_id, 0), "")
    if result is INTERMITTENT_TASK:
        again = await gate.run()
        assert again.key == (task_id, 1)
        await site.running(again)
    assert await site.state(task_id) == state


async def test_slots_bound_the_runs_and_can_change(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate, slots=2)
    await site.root.create_many(4)
    first, _ = await gate.run(), await gate.run()
    worker.stream.set_slots(3)
    await gate.run()
    assert gate.began.empty() and len(worker.stream.runs) == 3
    gate.end(first)
    await worker.heard.next("resolved")
    await gate.run()
    assert len(worker.stream.runs) == 3


async def test_work_that_raises_is_an_internal_error(site: Site) -> None:
    async def broken(run: HeldRun) -> Result:
        raise RuntimeError("out of order")

    worker = await site.worker(broken)
    task_id = await site.root.create()
    _, error = await worker.heard.next("crashed")
    assert str(error) == "out of order"
    await worker.heard.next("resolved")
    assert await site.state(task_id) == "exception internal-error"


async def test_credentials_of_a_run_work_for_its_calls(site: Site) -> None:
    gate = Gate()
    await site.worker(gate)
    task_id = await site.root.create()
    run = await gate.run()
    await site.running(run)
    own = site.root.having(
        run.credentials.client_id, run.credentials.access_token, run.credentials.certificate
    )
    answer = await own("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=0))
    assert answer.run_id == 0


@pytest.mark.settings(claim_timeout_s=1.0)
async def test_claims_are_renewed_and_the_run_has_the_latest_credentials(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    await site.root.create()
    run = await gate.run()
    client_id, until = run.credentials.client_id, run.taken_until
    assert await worker.heard.next("renewed") is run
    assert run.taken_until > until
    assert run.credentials.client_id != client_id


# -- losing runs


async def test_a_canceled_task_is_stopped(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    task_id = await site.root.create()
    run = await gate.run()
    await site.root("CancelTask", CancelTaskRequest(task_id=task_id))
    assert await worker.heard.next("revoked") is run
    assert run.revocation == RevocationReason.REVOCATION_REASON_CANCELED
    await site.root.create()
    await gate.run()
    assert gate.cancelled == [run.key]
    assert worker.heard.none("resolved")


async def test_a_quarantined_worker_hears_so(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    await site.root.create()
    gate.end(await gate.run())
    await worker.heard.next("resolved")
    provisioner_id, _, worker_type = QUEUE.partition("/")
    request = QuarantineWorkerRequest(
        provisioner_id=provisioner_id, worker_type=worker_type, worker_group="g", worker_id="w1"
    )
    request.quarantine_until.FromJsonString("2100-01-01T00:00:00Z")
    await site.root("QuarantineWorker", request)
    assert (await worker.heard.next("quarantined")).year == 2100
    request.quarantine_until.FromJsonString("2001-01-01T00:00:00Z")
    await site.root("QuarantineWorker", request)
    assert await worker.heard.next("quarantined") is None


# -- broken streams


async def test_a_broken_stream_costs_no_run(site: Site, proxy: Proxy) -> None:
    gate = Gate()
    worker = await site.worker(gate, slots=2, address=proxy.address)
    kept, other = await site.root.create_many(2)
    first, second = await gate.run(), await gate.run()
    await site.running(first, second)
    proxy.cut()
    assert (await worker.heard.next("disconnected")).passing
    # A resumed run is renewed at once.
    assert {(await worker.heard.next("renewed")).key for _ in range(2)} == {(kept, 0), (other, 0)}
    gate.end(first)
    gate.end(second, FAILED)
    for _ in range(2):
        await worker.heard.next("resolved")
    states = {first.task_id: "completed", second.task_id: "failed"}
    assert {task_id: await site.state(task_id) for task_id in (kept, other)} == states


async def test_what_ended_while_the_queue_was_away_is_reported_when_it_is_back(
    cluster: Cluster, site: Site
) -> None:
    """The queue is killed, a run ends meanwhile, another goes on."""
    gate = Gate()
    async with ServerProcess(cluster.settings).running() as process:
        worker = await site.worker(gate, slots=2, address=process.address)
        await site.root.create_many(2)
        ended, goes_on = await gate.run(), await gate.run()
        await site.running(ended, goes_on)
        await process.kill()
        await worker.heard.next("disconnected")
        gate.end(ended)
        await process.start()
        key, state, error = await worker.heard.next("resolved")
        assert (key, state, error) == (ended.key, "completed", "")
        gate.end(goes_on)
        assert (await worker.heard.next("resolved"))[0] == goes_on.key
        assert [await site.state(run.task_id) for run in (ended, goes_on)] == ["completed", "completed"]
        assert gate.cancelled == []


async def test_a_resolution_whose_answer_was_lost_is_no_error(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(session: Session, *_: Any) -> None:
        monkeypatch.undo()
        session._in_flight -= 1
        proxy.cut()

    gate = Gate()
    worker = await site.worker(gate, address=proxy.address)
    task_id = await site.root.create()
    run = await gate.run()
    monkeypatch.setattr(Session, "send_result", lose)
    gate.end(run)
    await worker.heard.next("disconnected")
    assert await worker.heard.next("resolved") == ((task_id, 0), "completed", "")
    assert worker.heard.none("revoked")
    assert await site.state(task_id) == "completed"


@pytest.mark.settings(stream_max_age_s=0.2)
async def test_a_stream_that_the_queue_closes_politely_is_replaced(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    task_id = await site.root.create()
    run = await gate.run()
    for _ in range(2):
        assert (await worker.heard.next("renewed")).key == run.key
    gate.end(run)
    await worker.heard.next("resolved")
    assert await site.state(task_id) == "completed"
    assert worker.heard.none("disconnected")


# -- ends


async def test_draining_ends_the_worker_with_its_last_run(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate)
    first = await site.root.create()
    run = await gate.run()
    worker.stream.drain()
    later = await site.root.create()
    assert not worker.task.done()
    gate.end(run)
    await worker.ended()
    assert [await site.state(task_id) for task_id in (first, later)] == ["completed", "pending"]


async def test_draining_an_idle_worker_ends_it(site: Site) -> None:
    worker = await site.worker(Gate())
    await site.root.create()
    await worker.heard.next("claimed")
    idle = await site.worker(Gate(), name="w2")
    idle.stream.drain()
    await idle.ended()


async def test_shutting_down_hands_runs_back(site: Site) -> None:
    gate = Gate()
    worker = await site.worker(gate, slots=2)
    ids = await site.root.create_many(2)
    runs = [await gate.run(), await gate.run()]
    shutting = asyncio.create_task(worker.stream.shut_down(grace_s=PATIENCE_S))
    gate.end(runs[0])
    await worker.heard.next("resolved")
    shutting.cancel()
    await worker.stream.shut_down()
    await worker.ended()
    states = {runs[0].task_id: "completed", runs[1].task_id: "pending worker-shutdown/open"}
    assert {task_id: await site.state(task_id) for task_id in ids} == states
    assert gate.cancelled == [runs[1].key]


async def test_shutting_down_does_not_wait_for_a_queue_that_is_gone(cluster: Cluster, site: Site) -> None:
    gate = Gate()
    async with ServerProcess(cluster.settings).running() as process:
        worker = await site.worker(gate, address=process.address)
        await site.root.create()
        await gate.run()
        await process.kill()
        await worker.heard.next("disconnected")
        await worker.stream.shut_down(report_s=0.05)
        await worker.ended()


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        (Credentials("root", "x" * 44), grpc.StatusCode.UNAUTHENTICATED),
        (Credentials(), grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_a_worker_that_the_queue_will_not_have_ends(
    site: Site, credentials: Credentials, status: grpc.StatusCode
) -> None:
    worker = await site.worker(Gate(), credentials=credentials)
    with pytest.raises(CallError) as caught:
        await worker.ended()
    assert caught.value.failure.status is status


# -- the command


@asynccontextmanager
async def command(site: Site, folder: Path, *options: str) -> AsyncIterator[Process]:
    """`tcqueue worker` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TCQUEUE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "worker", QUEUE, "--group", "g", "--id", "c1", *options),
        cwd=folder,
        stdout=PIPE,
        env={
            **environment,
            "TCQUEUE_CLIENT_ADDRESS": site.address,
            "TCQUEUE_CLIENT_ID": site.credentials.client_id,
            "TCQUEUE_CLIENT_ACCESS_TOKEN": site.credentials.access_token,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def event(process: Process, *names: str) -> dict[str, Any]:
    """The next event of one of these kinds."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stdout.readline():
            said: dict[str, Any] = json.loads(line)
            if said["event"] in names:
                return said
    raise AssertionError(f"it ended without {' or '.join(names)}")


async def test_the_command_runs_tasks_and_keeps_their_logs(site: Site, tmp_path: Path) -> None:
    task_id = await site.root.create(payload=json.dumps({"command": "echo hello; exit 0"}))
    failing = await site.root.create(payload=json.dumps({"command": ["false"]}))
    async with command(site, tmp_path, "--json", "--slots", "2") as process:
        said = [await event(process, "completed", "failed") for _ in range(2)]
        results = {entry["taskId"]: (entry["event"], entry["runId"]) for entry in said}
        assert results == {task_id: ("completed", 0), failing: ("failed", 0)}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    assert "hello\n" in (tmp_path / "data" / "logs" / task_id / "0.log").read_text()
    assert await site.state(task_id) == "completed"
    assert not (tmp_path / "data" / "work" / "g-c1").exists()


async def test_sigterm_hands_back_what_does_not_end_within_the_grace(site: Site, tmp_path: Path) -> None:
    task_id = await site.root.create(payload=json.dumps({"command": "exec sleep 600"}))
    async with command(site, tmp_path, "--json", "--grace", "0") as process:
        await event(process, "claimed")
        process.send_signal(signal.SIGTERM)
        assert (await event(process, "exception"))["reason"] == "worker-shutdown"
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    assert await site.state(task_id) == "pending worker-shutdown/open"


async def test_a_killed_worker_leaves_no_command_behind(site: Site, tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    await site.root.create(payload=json.dumps({"command": f"echo $$ > {fifo}; exec sleep 600"}))
    async with command(site, tmp_path) as process:
        child = os.pidfd_open(int(await asyncio.to_thread(fifo.read_bytes)))
        process.kill()
        await process.wait()
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(child, ended.set_result, None)
    await asyncio.wait_for(ended, PATIENCE_S)
    asyncio.get_running_loop().remove_reader(child)
    os.close(child)


async def test_the_command_says_why_it_may_not_work(site: Site, tmp_path: Path) -> None:
    site.credentials = Credentials("root", "y" * 44)
    async with command(site, tmp_path, "--json") as process:
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1
