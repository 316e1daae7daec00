"""The load, in a process of its own: `python -m bench.driver MODE JSON` prints one JSON line.

It exits with an error if anything it sent was refused: a figure of failures is no figure.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import grpc
import uvloop

from bench import wire
from tcqueue.v1.claim_pb2 import ClaimTasksRequest, ClaimTasksResponse


class Driver:
    """Channels to the server and the calls of a life."""

    def __init__(self, address: str, queue: str) -> None:
        self.address = address
        self.queue = queue
        self.metadata = wire.metadata()
        self.resolved = 0

    def channel(self) -> Any:
        """A connection of its own, for calls whose messages are bytes."""
        return grpc.aio.insecure_channel(self.address, options=wire.CHANNEL_OPTIONS)

    async def open(self, worker: str, slots: int) -> Any:
        """A claim stream on its own connection."""
        call = self.channel().stream_stream(f"{wire.SERVICE}/ClaimWork")(metadata=self.metadata)
        await call.write(wire.open_stream(self.queue, worker, slots))
        return call

    async def work(self, worker: str, slots: int, done: asyncio.Event, room: asyncio.Semaphore) -> None:
        """A worker: accepts and completes whatever comes."""
        call = await self.open(worker, slots)
        while not done.is_set():
            message = await call.read()
            if not isinstance(message, bytes):
                raise RuntimeError(f"stream ended: {await call.code()} {await call.details()}")
            kind, ids = wire.read(message)
            if kind == "claims":
                await call.write(wire.accept(ids))
                await call.write(wire.resolve(ids))
            elif kind == "resolved":
                self.resolved += len(ids)
                for _ in ids:
                    room.release()
        call.cancel()


async def lives(
    address: str, queue: str, *, workers: int, slots: int, batch: int, callers: int, seconds: float
) -> Any:
    """Whole lives per second: created (one by one, or as graphs of `batch`), claimed on streams,
    accepted, completed. Creation is held to what keeps the workers busy."""
    driver = Driver(address, queue)
    done = asyncio.Event()
    room = asyncio.Semaphore(max(2 * workers * slots, 4 * batch, callers))
    tasks = [asyncio.create_task(driver.work(f"w{i}", slots, done, room)) for i in range(workers)]
    channels = [driver.channel() for _ in range(min(callers, 4))]
    method = "CreateTask" if batch == 1 else "CreateTasks"

    async def create(channel: Any) -> None:
        call = channel.unary_unary(f"{wire.SERVICE}/{method}")
        while not done.is_set():
            group = wire.slugid()
            task = wire.definition(queue, group)
            for _ in range(1 if batch > 1 else 32):
                for _ in range(batch):
                    await room.acquire()
                ids = [wire.slugid() for _ in range(batch)]
                request = wire.create_task(ids[0], task) if batch == 1 else wire.create_tasks(ids, task)
                await call(request, metadata=driver.metadata)

    tasks += [asyncio.create_task(create(channels[i % len(channels)])) for i in range(callers)]
    await watch(tasks, 2.0)
    start, first = time.perf_counter(), driver.resolved
    await watch(tasks, seconds)
    rate = (driver.resolved - first) / (time.perf_counter() - start)
    done.set()
    for task in tasks:
        task.cancel()
    return rate


async def creates(address: str, queue: str, *, callers: int, seconds: float) -> Any:
    """Unary creations per second."""
    driver = Driver(address, queue)
    made = 0

    async def create(channel: Any) -> None:
        nonlocal made
        call = channel.unary_unary(f"{wire.SERVICE}/CreateTask")
        task = wire.definition(queue, wire.slugid())
        while True:
            await call(wire.create_task(wire.slugid(), task), metadata=driver.metadata)
            made += 1

    channels = [driver.channel() for _ in range(min(callers, 4))]
    tasks = [asyncio.create_task(create(channels[i % len(channels)])) for i in range(callers)]
    await watch(tasks, 1.0)
    start, first = time.perf_counter(), made
    await watch(tasks, seconds)
    rate = (made - first) / (time.perf_counter() - start)
    for task in tasks:
        task.cancel()
    return rate


async def pickup(address: str, queue: str, *, count: int, streams: int = 8) -> Any:
    """Milliseconds from the return of CreateTask to the arrival of the claim, on an idle queue."""
    driver = Driver(address, queue)
    calls = [await driver.open(f"p{i}", 1) for i in range(streams)]
    create = driver.channel().unary_unary(f"{wire.SERVICE}/CreateTask")
    arrived: dict[bytes, asyncio.Future[float]] = {}

    async def listen(call: Any) -> None:
        while True:
            kind, ids = wire.read(await call.read())
            if kind == "claims":
                arrived[ids[0]].set_result(time.perf_counter())
                await call.write(wire.accept(ids))
                await call.write(wire.resolve(ids))

    listeners = [asyncio.create_task(listen(call)) for call in calls]
    task = wire.definition(queue, wire.slugid())
    from_start, from_return = [], []
    for _ in range(count + 20):
        task_id = wire.slugid()
        arrived[task_id] = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        await create(wire.create_task(task_id, task), metadata=driver.metadata)
        returned = time.perf_counter()
        came = await asyncio.wait_for(arrived[task_id], 10)
        from_start.append((came - begin) * 1000)
        from_return.append(max(0.0, came - returned) * 1000)
        await asyncio.sleep(random.uniform(0.01, 0.03))
    for listener in listeners:
        listener.cancel()
    return {"from_call": from_start[20:], "from_return": from_return[20:]}


async def idle(address: str, queue: str, *, streams: int) -> Any:
    """Opens idle streams, each on its own connection, says so, and holds them until its input ends."""
    driver = Driver(address, queue)
    calls = []
    for first in range(0, streams, 50):
        calls += await asyncio.gather(
            *(driver.open(f"i{i}", 1) for i in range(first, min(first + 50, streams)))
        )
    print(json.dumps(len(calls)), flush=True)
    readers = [asyncio.ensure_future(call.read()) for call in calls]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for reader in readers:
        reader.cancel()
    return len(calls)


async def claim_cost(address: str, queue: str, *, count: int) -> Any:
    """Milliseconds of each of `count` unary claims of one run."""
    driver = Driver(address, queue)
    call = driver.channel().unary_unary(f"{wire.SERVICE}/ClaimTasks")
    request = ClaimTasksRequest(task_queue_id=queue, worker_group="bench", worker_id="c", tasks=1)
    times = []
    for _ in range(count + 20):
        begin = time.perf_counter()
        answer = await call(request.SerializeToString(), metadata=driver.metadata)
        times.append((time.perf_counter() - begin) * 1000)
        if len(ClaimTasksResponse.FromString(answer).tasks) != 1:
            raise RuntimeError("nothing was claimed")
    return times[20:]


async def watch(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Lets the tasks work for so long; raises what one of them fails with."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def main() -> None:
    """Runs one mode."""
    modes = {f.__name__: f for f in (lives, creates, pickup, idle, claim_cost)}
    result = uvloop.run(modes[sys.argv[1]](**json.loads(sys.argv[2])))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
