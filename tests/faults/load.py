"""A load that survives faults: creators and workers that try again, and the books to compare after."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import orjson
from grpc.aio import AioRpcError

from server.domain import slugid
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_pb2 import CreateTaskRequest, Requires, TaskDefinition
from tests.streams.harness import (
    COMPLETED,
    EXCEPTION,
    FAILED,
    Client,
    Failure,
    Key,
    Stream,
    definition,
    key_of,
)

RETRIES = 40
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL)


class Load:
    """So many tasks, created one by one, some waiting for others, claimed and resolved by workers."""

    def __init__(self, tasks: int) -> None:
        self.planned = tasks
        self.definitions: dict[str, TaskDefinition] = {}
        #: Dependents and what they wait for.
        self.waits: dict[str, str] = {}
        #: Who was told that a run is resolved by it.
        self.resolved: dict[Key, list[str]] = {}
        self.finished: set[str] = set()
        self._progress = asyncio.Condition()

    async def reached(self, finished: int) -> None:
        """Returns when so many tasks have been resolved for good, as their workers know."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.finished) >= finished)

    async def create(self, client: Callable[[], Client], count: int) -> None:
        """Creates tasks, repeating each call until it is answered."""
        earlier = ""
        for n in range(count):
            task_id = slugid.nice()
            task = definition(retries=RETRIES, tags={"n": str(n)})
            if earlier and n % 3 == 2:
                task.dependencies.append(earlier)
                task.requires = Requires.REQUIRES_ALL_RESOLVED
                self.waits[task_id] = earlier
            self.definitions[task_id] = task
            earlier = task_id
            while True:
                try:
                    await client()("CreateTask", CreateTaskRequest(task_id=task_id, task=task), timeout=5)
                    break
                except Failure as e:
                    assert e.code in _AGAIN, e
                    await asyncio.sleep(0.02)

    async def work(self, name: str, client: Callable[[], Client], slots: int) -> None:
        """A worker: comes back with what it holds as often as its stream breaks."""
        held: dict[Key, None] = {}
        while True:
            try:
                await self._stream(name, await client().work(name, slots, list(held)), held)
            except (AioRpcError, asyncio.InvalidStateError, TimeoutError):
                pass
            await asyncio.sleep(0.02)

    async def _stream(self, name: str, stream: Stream, held: dict[Key, None]) -> None:
        resolving: set[asyncio.Task[None]] = set()

        async def resolve(key: Key) -> None:
            await asyncio.sleep(random.uniform(0, 0.05))
            outcome, reason = ending(key)
            await one_by_one(lambda: stream.resolve_runs(key, outcome=outcome, reason=reason))

        writing = asyncio.Lock()

        async def one_by_one(write: Callable[[], Awaitable[None]]) -> None:
            async with writing:
                await write()

        def begin(key: Key) -> None:
            task = asyncio.create_task(resolve(key))
            resolving.add(task)
            task.add_done_callback(resolving.discard)
            task.add_done_callback(lambda done: None if done.cancelled() else done.exception())

        try:
            async for kind, item in stream.messages():
                if kind == "claims":
                    key = key_of(item)
                    await one_by_one(lambda key=key: stream.accept_runs(key))  # type: ignore[misc]
                    held[key] = None
                    begin(key)
                elif kind == "reclaimed":
                    begin((item.task_id, item.run_id))
                elif kind == "revoked":
                    held.pop((item.task_id, item.run_id), None)
                elif kind == "resolved":
                    key = (item.task_id, item.run_id)
                    if item.error.code == "Unavailable":
                        begin(key)
                    elif held.pop(key, 0) is None and not item.HasField("error"):
                        await self._note(name, key)
        finally:
            for task in resolving:
                task.cancel()
            await stream.close()

    async def _note(self, name: str, key: Key) -> None:
        async with self._progress:
            self.resolved.setdefault(key, []).append(name)
            if ending(key)[0] != EXCEPTION:
                self.finished.add(key[0])
            self._progress.notify_all()


def ending(key: Key) -> tuple[Any, Any]:
    """How a worker ends a run: by the task's id, so that every worker would end it the same way."""
    kind = sum(key[0].encode()) % 10
    if kind == 0:
        return FAILED, 0
    if kind in (1, 2) and key[1] == 0:
        return EXCEPTION, ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN
    return COMPLETED, 0


def reconcile(load: Load, tasks: Sequence[Any], runs: Sequence[Any], outbox: Sequence[Any]) -> Counter[str]:
    """Compares what was asked for, the tables, and the event log; returns how many runs ended how.

    `tasks` are (id, retries left, last run, resolved); `runs` (task, run, state, reason created, reason
    resolved, started or not) in order; `outbox` (id, events) in order.
    """
    assert {task[0] for task in tasks} == set(load.definitions), "tasks lost or made up"
    history: dict[str, list[Any]] = {}
    for run in runs:
        history.setdefault(run[0], []).append(run)
    log: dict[str, list[tuple[str, int]]] = {}
    position: dict[tuple[str, str, int], int] = {}
    for row, text in outbox:
        for event in orjson.loads(text):
            kind = event["exchange"].rsplit("/", 1)[-1]
            if kind == "task-group-resolved":
                continue
            payload = event["payload"]
            task_id, run_id = payload["status"]["taskId"], payload.get("runId", -1)
            log.setdefault(task_id, []).append((kind, run_id))
            position.setdefault((task_id, kind, run_id), row)
    ended: Counter[str] = Counter()
    for task_id, retries_left, last_run, resolved in tasks:
        its = history[task_id]
        assert resolved, f"{task_id} is not resolved"
        assert [run[1] for run in its] == list(range(last_run + 1))
        retried = sum(1 for run in its if run[3] in ("retry", "task-retry"))
        assert retries_left == RETRIES - retried
        expected: list[tuple[str, int]] = [("task-defined", -1)]
        for _, run_id, state, _, reason, started in its:
            ended[reason] += 1
            expected.append(("task-pending", run_id))
            if started:
                expected.append(("task-running", run_id))
            expected.append((f"task-{state}", run_id))
        _, _, state, *_ = its[-1]
        assert state == ("failed" if ending((task_id, last_run))[0] == FAILED else "completed")
        _check_log(task_id, log[task_id], expected)
        waited = load.waits.get(task_id)
        if waited is not None:
            ends = [position[k] for k in position if k[0] == waited and k[1] in _FINAL]
            assert position[task_id, "task-pending", 0] >= min(ends), f"{task_id} did not wait for {waited}"
    for key, names in load.resolved.items():
        assert len(set(names)) == 1, f"run {key} was resolved by {names}"
    return ended


_FINAL = ("task-completed", "task-failed", "task-exception")


def _check_log(task_id: str, found: list[tuple[str, int]], expected: list[tuple[str, int]]) -> None:
    """Everything expected is there in its order; between stand repeats only, and never of a claim."""
    left = list(expected)
    for event in found:
        if left and event == left[0]:
            del left[0]
        else:
            assert event in expected and event not in left, f"{task_id}: {event} is out of order in {found}"
            assert event[0] != "task-running", f"{task_id}: claimed twice: {found}"
    assert not left, f"{task_id}: {left} are missing from {found}"
