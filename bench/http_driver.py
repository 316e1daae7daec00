"""The load over HTTP, in a process of its own: `python -m bench.http_driver MODE JSON`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from bench import artifacts as bench_artifacts
from bench.driver import watch
from bench.http_wire import API, Connection, Credentials, definition
from bench.wire import slugid

CLAIM = b'{"workerGroup":"bench","workerId":"%s","tasks":%d}'


class Counter:
    """How much has been done."""

    def __init__(self) -> None:
        self.done = 0


async def lives(address: str, queue: str, *, clients: int, seconds: float) -> Any:
    """Whole lives per second: each client creates a task, claims one, and completes what it got."""
    counter = Counter()

    async def live(number: int) -> None:
        connection = await Connection.open(address)
        task, claim = definition(queue), CLAIM % (b"w%d" % number, 1)
        while True:
            await connection.call("PUT", f"{API}/task/{slugid().decode()}", task)
            got = (await connection.call("POST", f"{API}/claim-work/{queue}", claim))["tasks"]
            for each in got:
                who = Credentials.of_task(each["credentials"])
                run = f"{each['status']['taskId']}/runs/{each['runId']}"
                await connection.call("POST", f"{API}/task/{run}/completed", who=who)
                counter.done += 1

    return await _rate([live(n) for n in range(clients)], counter, seconds)


async def creates(address: str, queue: str, *, clients: int, seconds: float) -> Any:
    """Creations per second."""
    counter = Counter()

    async def create() -> None:
        connection = await Connection.open(address)
        task = definition(queue)
        while True:
            await connection.call("PUT", f"{API}/task/{slugid().decode()}", task)
            counter.done += 1

    return await _rate([create() for _ in range(clients)], counter, seconds)


async def artifacts(address: str, queue: str, *, clients: int, seconds: float) -> Any:
    """Creations of artifacts per second, of type s3: each client in a task of its own."""
    counter = Counter()

    async def create(number: int) -> None:
        connection = await Connection.open(address)
        task_id, who = await bench_artifacts.claimed(connection, f"{queue}-{number}")
        body = bench_artifacts.artifact()
        made = 0
        while True:
            made += 1
            await connection.call("POST", f"{API}/task/{task_id}/runs/0/artifacts/public/{made}", body, who)
            counter.done += 1

    return await _rate([create(n) for n in range(clients)], counter, seconds)


async def signed(address: str, queue: str, *, clients: int, seconds: float) -> Any:
    """Calls that ask nothing of the database: what the gateway and Hawk cost by themselves."""
    counter = Counter()

    async def ask() -> None:
        connection = await Connection.open(address)
        while True:
            await connection.call("GET", "/api/auth/v1/scopes/current")
            counter.done += 1

    return await _rate([ask() for _ in range(clients)], counter, seconds)


async def claims(address: str, queue: str, *, clients: int, count: int) -> Any:
    """Runs claimed per second in batches of 32, from a backlog of `count`."""
    connections = [await Connection.open(address) for _ in range(clients)]
    task = definition(queue)

    async def fill(connection: Connection) -> None:
        for _ in range(count // clients):
            await connection.call("PUT", f"{API}/task/{slugid().decode()}", task)

    await asyncio.gather(*map(fill, connections))
    left = count // clients * clients
    began = time.perf_counter()

    async def claim(number: int) -> None:
        nonlocal left
        while left > 0:
            body = CLAIM % (b"w%d" % number, 32)
            left -= 32
            got = await connections[number].call("POST", f"{API}/claim-work/{queue}", body)
            left += 32 - len(got["tasks"])

    await asyncio.gather(*(claim(number) for number in range(clients)))
    return count // clients * clients / (time.perf_counter() - began)


async def wakeup(address: str, queue: str, *, count: int) -> Any:
    """Milliseconds from a creation's call, and from its return, to the answer of a waiting claimWork."""
    creator, worker = await Connection.open(address), await Connection.open(address)
    task = definition(queue)
    from_call, from_return = [], []
    for _ in range(count + 20):
        waiting = asyncio.ensure_future(worker.call("POST", f"{API}/claim-work/{queue}", CLAIM % (b"w", 1)))
        await asyncio.sleep(random.uniform(0.01, 0.03))
        begin = time.perf_counter()
        creation = asyncio.ensure_future(creator.call("PUT", f"{API}/task/{slugid().decode()}", task))
        ends: dict[str, float] = {}
        creation.add_done_callback(_clock(ends, "created"))
        waiting.add_done_callback(_clock(ends, "claimed"))
        await creation
        (got,) = (await waiting)["tasks"]
        run = f"{got['status']['taskId']}/runs/{got['runId']}"
        await creator.call("POST", f"{API}/task/{run}/completed", who=Credentials.of_task(got["credentials"]))
        from_call.append((ends["claimed"] - begin) * 1000)
        from_return.append(max(0.0, ends["claimed"] - ends["created"]) * 1000)
    return {"from_call": from_call[20:], "from_return": from_return[20:]}


def _clock(ends: dict[str, float], name: str) -> Callable[[object], None]:
    """Notes when something was done."""

    def note(_: object) -> None:
        ends[name] = time.perf_counter()

    return note


async def _rate(work: list[Coroutine[Any, Any, None]], counter: Counter, seconds: float) -> Any:
    """Per second once all are at work, and how many there were in all."""
    tasks = [asyncio.create_task(each) for each in work]
    await watch(tasks, 1.5)
    start, first = time.perf_counter(), counter.done
    await watch(tasks, seconds)
    rate = (counter.done - first) / (time.perf_counter() - start)
    for task in tasks:
        task.cancel()
    return {"rate": rate, "done": counter.done}


MODES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (lives, creates, artifacts, signed, claims, wakeup)
}

if __name__ == "__main__":
    print(json.dumps(uvloop.run(MODES[sys.argv[1]](**json.loads(sys.argv[2])))), flush=True)
