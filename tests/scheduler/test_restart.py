"""A server that dies in the middle of a graph."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import psycopg
import pytest
from grpc.aio import AioRpcError

from server.client.credentials import Credentials
from server.config import Settings
from server.events.rows import read_row
from tests.conformance.building import QUEUE, new_ids
from tests.conformance.door import METHODS
from tests.plugins.deployment import TOKEN, deployed
from tests.scheduler.building import SCOPES, graph, nodes
from tests.streams.serving import ServerProcess


class Client:
    """Calls a server that comes and goes, again until it answers."""

    def __init__(self, address: str, token: str) -> None:
        options = [
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._credentials = Credentials("root", token)

    async def send(self, method: str, request: Any) -> Any:
        """The response; a request is repeated while nobody answers."""
        rules = METHODS[method]
        invoke = self._channel.unary_unary(
            rules.full_name,
            request_serializer=rules.request_class.SerializeToString,
            response_deserializer=rules.response_class.FromString,
        )
        async with asyncio.timeout(40):
            while True:
                try:
                    return await invoke(
                        request, metadata=self._credentials.metadata(), wait_for_ready=True, timeout=10
                    )
                except AioRpcError as e:
                    if e.code() != grpc.StatusCode.UNAVAILABLE:
                        raise

    async def __call__(self, method: str, /, **fields: Any) -> Any:
        """The response to a request with these fields."""
        return await self.send(method, METHODS[method].request_class(**fields))

    async def close(self) -> None:
        await self._channel.close(None)


async def work(client: Client, stop: asyncio.Event, failed: set[str]) -> None:
    """A worker: every task fails once."""
    while not stop.is_set():
        answer = await client("ClaimTasks", task_queue_id=QUEUE, worker_group="g", worker_id="w", tasks=2)
        for claim in answer.tasks:
            task_id = claim.status.task_id
            report = "ReportCompleted" if task_id in failed else "ReportFailed"
            try:
                await client(report, task_id=task_id, run_id=claim.run_id)
                failed.add(task_id)
            except AioRpcError as e:
                # While nobody answered the claim ran out.
                assert e.code() == grpc.StatusCode.FAILED_PRECONDITION


async def published(dsn: str) -> Counter[str]:
    """How many events each exchange has had."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await (await connection.execute("select id, time, events from outbox")).fetchall()
    return Counter(event.exchange for row in rows for event in read_row(*row).events)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_kill_in_the_middle(settings: Settings) -> None:
    """S-058: kill -9, again and again, while a graph runs, fails, reruns and is extended: it finishes,
    told once, and no rerun was used twice."""
    tasks = new_ids(24)
    edges = {task_id: tasks[max(0, n - 2) : n] for n, task_id in enumerate(tasks)}
    request = graph(edges, reruns=1, retries=40)
    server = ServerProcess(
        settings,
        grpc_listen="127.0.0.1:0",
        claim_poll_s=0.2,
        claim_timeout_s=1.0,
        claim_poll_delay_s=0.2,
    )
    async with server.running():
        client = Client(server.address, settings.root_access_token)
        stop, failed = asyncio.Event(), set[str]()
        try:
            submitting = asyncio.create_task(client.send("CreateTaskGraph", request))
            await asyncio.sleep(0)
            await server.kill()
            await server.start()
            await submitting
            worker = asyncio.create_task(work(client, stop, failed))
            graph_id = request.task_graph_id
            (added,) = new_ids(1)
            for n in (4, 10, 16):
                while len(failed) < n:
                    assert not worker.done() or worker.result()
                    await asyncio.sleep(0.01)
                await server.kill()
                await server.start()
            extension = METHODS["ExtendTaskGraph"].request_class(
                task_graph_id=graph_id, tasks=nodes({added: [tasks[-1]]}, reruns=1, retries=40)
            )
            await client.send("ExtendTaskGraph", extension)
            await server.kill()
            await server.start()
            async with asyncio.timeout(60):
                while (await client("GetTaskGraphStatus", task_graph_id=graph_id)).status.state != 3:
                    assert not worker.done() or worker.result()
                    await asyncio.sleep(0.02)
            stop.set()
            await worker
            shown = await client("InspectTaskGraph", task_graph_id=graph_id)
            assert sorted(node.task_id for node in shown.tasks) == sorted([*tasks, added])
            for node in shown.tasks:
                assert (node.satisfied, node.reruns_left, list(node.requires_left)) == (True, 0, [])
            events = await published(settings.database_url)
            assert [events[f"task-graph-{kind}"] for kind in ("finished", "blocked")] == [1, 0]
            assert events["task-graph-running"] > 0 and events["task-graph-extended"] > 0
        finally:
            await client.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_restart_as_people_do(tmp_path: Path) -> None:
    """S-058: a deployment with its own database is ended in the middle of a graph and started again: the
    graph stands where it stood, and goes on to its end."""
    a, b, c = new_ids(3)
    request = graph({a: [], b: [a], c: [b]}, reruns=1, scopes=SCOPES)

    async def use(address: str, *steps: tuple[str, dict[str, Any]]) -> list[Any]:
        client = Client(address, TOKEN)
        try:
            return [await client(method, **fields) for method, fields in steps]
        finally:
            await client.close()

    def life(task_id: str, run_id: int, report: str) -> list[tuple[str, dict[str, Any]]]:
        of = {"task_id": task_id, "run_id": run_id}
        return [("ClaimTask", {**of, "worker_group": "g", "worker_id": "w"}), (report, of)]

    graph_id = request.task_graph_id
    fields = {field.name: value for field, value in request.ListFields()}
    with deployed(tmp_path) as (said, _):
        asyncio.run(
            use(
                said["grpc"],
                ("CreateTaskGraph", fields),
                *life(a, 0, "ReportFailed"),
                *life(a, 1, "ReportCompleted"),
                ("ClaimTask", {"task_id": b, "run_id": 0, "worker_group": "g", "worker_id": "w"}),
            )
        )
        before = httpx.get(f"http://{said['http']}/api/scheduler/v1/task-graph/{graph_id}/inspect").json()
        assert before["status"]["state"] == "running"
    with deployed(tmp_path) as (said, _):
        after = httpx.get(f"http://{said['http']}/api/scheduler/v1/task-graph/{graph_id}/inspect").json()
        assert after == before
        asyncio.run(
            use(
                said["grpc"],
                ("ReportFailed", {"task_id": b, "run_id": 0}),
                *life(b, 1, "ReportCompleted"),
                *life(c, 0, "ReportCompleted"),
            )
        )
        url = f"http://{said['http']}/api/scheduler/v1/task-graph/{graph_id}/status"
        assert httpx.get(url).json()["status"]["state"] == "finished"
