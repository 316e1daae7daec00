from __future__ import annotations

from tests.conformance.shown import runs, state
from tests.plugins.server import Queue


async def test_x(queue: Queue) -> None:
    status = await queue.create()
    assert state(status) == "pending"
    (claim,) = await queue.claim()
    assert runs(claim.status) == ["scheduled running"]
    assert (await queue.published()).exchanges == ["task-defined", "task-pending", "task-running"]


async def test_y(queue: Queue) -> None:
    await queue.resolved("failed")
    assert (await queue.published()).exchanges == ["task-defined", "task-pending", "task-running", "task-failed", "task-group-resolved"]
