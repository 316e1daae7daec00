"""What a loop is, and how it is driven."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from server import metrics
from server.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Failures in a row after which a loop gives up and lets the process be restarted (queue.md 6.2).
MAX_FAILURES = 10


class Loop(Protocol):
    """One background job. `run_once` does a bounded round and returns how many things it handled;
    `full` is how many that are when more may be waiting, and `pause_s` the rest between two rounds."""

    @property
    def name(self) -> str: ...
    @property
    def pause_s(self) -> float: ...
    @property
    def full(self) -> int: ...
    async def run_once(self) -> int: ...


class LoopFailed(RuntimeError):
    """A loop failed too often in a row."""


async def handle_all(name: str, items: Sequence[T], handle: Callable[[Sequence[T]], Awaitable[int]]) -> int:
    """Handles items at once, and one by one where that fails: an item that cannot be handled is logged
    and left, the others are done (queue.md 6.2). Returns how many were handled, as `handle` counts.

    Raises Unavailable, and the failure itself when none of several items could be handled: then it is
    not the items that are wrong.
    """
    if not items:
        return 0
    try:
        return await handle(items)
    except Unavailable:
        raise
    except Exception as e:
        handled, failed = 0, 0
        for item in items:
            try:
                handled += await handle([item])
            except Unavailable:
                raise
            except Exception:
                failed += 1
                log.exception("loop leaves an item", loop=name, item=str(item))
        if failed == len(items) > 1:
            raise e
        return handled


async def run(loop: Loop, stop: asyncio.Event) -> None:
    """Drives a loop until `stop`. A database that is away is waited for; anything else that fails
    MAX_FAILURES times in a row ends the loop with LoopFailed."""
    failures = 0
    while not stop.is_set():
        pause = loop.pause_s
        try:
            handled = await loop.run_once()
            metrics.LOOP_ROUNDS.labels(loop.name, "ok").inc()
            metrics.LOOP_HANDLED.labels(loop.name).inc(handled)
            failures = 0
            if handled >= loop.full:
                pause = 0.0
        except Unavailable as e:
            log.warning("loop waits for what it needs", loop=loop.name, error=e.message)
            metrics.LOOP_ROUNDS.labels(loop.name, "unavailable").inc()
        except Exception as e:
            failures += 1
            metrics.LOOP_ROUNDS.labels(loop.name, "failed").inc()
            log.exception("loop failed", loop=loop.name, failures=failures)
            if failures >= MAX_FAILURES:
                raise LoopFailed(f"loop {loop.name} failed {failures} times in a row") from e
        if pause:
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                continue
        else:
            await asyncio.sleep(0)
