"""The micro-batcher: what goes together, what waits, and who hears of which failure."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from itertools import pairwise

import pytest

from server.store.batcher import Batcher

FOREVER = 3600.0


class Runs:
    """A `run` that notes its batches and, when gated, holds each until it is let go."""

    def __init__(self, *, gated: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.running = 0
        self.most_running = 0
        self.gate = asyncio.Event()
        self.started = asyncio.Condition()
        if not gated:
            self.gate.set()

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        async with self.started:
            self.started.notify_all()
        await self.gate.wait()
        self.running -= 1
        return [item * 10 for item in items]

    async def batch_count(self, count: int) -> None:
        async with self.started:
            await self.started.wait_for(lambda: len(self.batches) >= count)


async def turns(count: int = 3) -> None:
    """Lets everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_calls_of_one_moment_share_a_batch() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs)
    assert await asyncio.gather(*(batcher.submit(n) for n in range(5))) == [0, 10, 20, 30, 40]
    assert runs.batches == [[0, 1, 2, 3, 4]]


async def test_lone_callers_never_wait() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_linger=FOREVER, max_pause=FOREVER)
    for n in range(3):
        assert await batcher.submit(n) == n * 10
    assert runs.batches == [[0], [1], [2]]


async def test_no_batch_exceeds_max_items_and_order_is_kept() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_items=3, lanes=1)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(7)))
    assert results == [n * 10 for n in range(7)]
    assert runs.batches == [[0, 1, 2], [3, 4, 5], [6]]


async def test_no_more_runs_at_once_than_lanes_and_the_rest_gathers_meanwhile() -> None:
    runs = Runs(gated=True)
    batcher: Batcher[int, int] = Batcher("x", runs, lanes=2, max_linger=0)
    calls: list[asyncio.Future[int]] = []
    for n in range(6):
        calls.append(asyncio.ensure_future(batcher.submit(n)))
        await turns()
    assert runs.batches == [[0], [1]]
    assert batcher.waiting == 4
    runs.gate.set()
    await asyncio.gather(*calls)
    assert runs.batches == [[0], [1], [2, 3, 4, 5]]
    assert runs.most_running == 2


async def test_company_is_waited_for_and_the_matching_item_ends_the_wait() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_linger=FOREVER, max_pause=FOREVER)
    await asyncio.gather(*(batcher.submit(n) for n in range(3)))
    first, second = (asyncio.ensure_future(batcher.submit(n)) for n in (3, 4))
    await turns()
    assert batcher.waiting == 2
    await batcher.submit(5)
    await asyncio.gather(first, second)
    assert runs.batches == [[0, 1, 2], [3, 4, 5]]


async def test_the_wait_ends_when_nothing_more_comes() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_linger=FOREVER, max_pause=0.001)
    await asyncio.gather(*(batcher.submit(n) for n in range(3)))
    assert await batcher.submit(3) == 30
    assert runs.batches == [[0, 1, 2], [3]]
    # And having been disappointed, it does not wait again.
    batcher_again = asyncio.ensure_future(batcher.submit(4))
    await turns()
    assert runs.batches[-1] == [4]
    await batcher_again


async def test_a_crowded_batcher_tries_for_twice_as_many() -> None:
    runs = Runs(gated=True)
    batcher: Batcher[int, int] = Batcher("x", runs, lanes=1, max_linger=FOREVER, max_pause=FOREVER)
    calls = [asyncio.ensure_future(batcher.submit(n)) for n in range(2)]
    await runs.batch_count(1)
    calls += [asyncio.ensure_future(batcher.submit(n)) for n in (2, 3)]  # while the first two run
    await turns()
    runs.gate.set()
    await runs.batch_count(2)
    assert runs.batches == [[0, 1], [2, 3]]
    calls += [asyncio.ensure_future(batcher.submit(n)) for n in (4, 5, 6)]
    await turns()
    assert batcher.waiting == 3
    calls.append(asyncio.ensure_future(batcher.submit(7)))
    await asyncio.gather(*calls)
    assert runs.batches[2:] == [[4, 5, 6, 7]]


async def test_a_batcher_that_tried_in_vain_leaves_it_for_longer_and_longer() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, lanes=1, max_linger=FOREVER, max_pause=0.001)
    for _ in range(3):
        await asyncio.gather(*(batcher.submit(n) for n in range(2)))
        assert batcher.wanted == 2  # nothing gathered behind it: more is not tried for

    async def crowd() -> int:
        """Two items run, two gather behind them; how many the next batch is to have."""
        runs.gate.clear()
        calls = [asyncio.ensure_future(batcher.submit(n)) for n in range(2)]
        await runs.batch_count(len(runs.batches) + 1)
        calls += [asyncio.ensure_future(batcher.submit(n)) for n in range(2)]
        await turns()
        runs.gate.set()
        await asyncio.gather(*calls)
        return batcher.wanted

    wanted = [await crowd() for _ in range(24)]
    tries = [n for n, size in enumerate(wanted) if size == 4]
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert len(tries) > 2
    assert gaps == sorted(gaps) and gaps[-1] > gaps[0]


async def test_the_wait_ends_after_max_linger_though_items_keep_coming() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_linger=0.05, max_pause=0.05, max_items=1000)
    await asyncio.gather(*(batcher.submit(n) for n in range(1000)))
    calls: list[asyncio.Future[int]] = []
    while len(runs.batches) < 2:  # far fewer than a thousand turns of the loop fit in 50 ms
        calls.append(asyncio.ensure_future(batcher.submit(len(calls))))
        await asyncio.sleep(0.0005)
    assert 1 < len(runs.batches[1]) < 1000
    await batcher.drain()
    await asyncio.gather(*calls)


async def test_an_item_may_fail_alone() -> None:
    async def run(items: list[int]) -> list[int | Exception]:
        return [ValueError(str(n)) if n % 2 else n for n in items]

    batcher: Batcher[int, int] = Batcher("x", run)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(3)), return_exceptions=True)
    assert [str(r) for r in results] == ["0", "1", "2"]
    assert isinstance(results[1], ValueError)
    many = await batcher.submit_many([4, 5])
    assert many[0] == 4 and isinstance(many[1], ValueError)


async def test_a_failing_run_fails_its_batch_and_no_other() -> None:
    async def run(items: list[int]) -> list[int]:
        if 1 in items:
            raise ConnectionError("away")
        return items

    batcher: Batcher[int, int] = Batcher("x", run, max_items=2)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)
    assert [type(r) for r in results] == [ConnectionError, ConnectionError, int, int]
    many = await batcher.submit_many([0, 1, 2, 3])
    assert [type(r) for r in many] == [ConnectionError, ConnectionError, int, int]


async def test_a_run_that_returns_too_little_is_an_error() -> None:
    async def run(items: list[int]) -> list[int]:
        return items[1:]

    batcher: Batcher[int, int] = Batcher("short", run)
    with pytest.raises(RuntimeError, match="batcher short: 0 results for 1 items"):
        await batcher.submit(1)


async def test_submit_many_spans_batches_and_keeps_order() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs, max_items=4)
    single = asyncio.ensure_future(batcher.submit(99))
    assert await batcher.submit_many(list(range(9))) == [n * 10 for n in range(9)]
    assert await single == 990
    assert [len(b) for b in runs.batches] == [4, 4, 2]
    assert await batcher.submit_many([]) == []


async def test_enqueue_needs_no_waiting() -> None:
    runs = Runs()
    batcher: Batcher[int, int] = Batcher("x", runs)
    futures = [batcher.enqueue(n) for n in range(3)]
    assert runs.batches == []
    assert await asyncio.gather(*futures) == [0, 10, 20]


async def test_a_cancelled_waiter_loses_nothing_but_its_answer() -> None:
    runs = Runs(gated=True)
    batcher: Batcher[int, int] = Batcher("x", runs, lanes=1)
    under_way = asyncio.ensure_future(batcher.submit(0))
    await runs.batch_count(1)
    waiting = asyncio.ensure_future(batcher.submit(1))
    group = asyncio.ensure_future(batcher.submit_many([2, 3]))
    other = asyncio.ensure_future(batcher.submit(4))
    await turns()
    for call in (under_way, waiting, group):
        call.cancel()
    runs.gate.set()
    assert await other == 40
    assert runs.batches == [[0], [1, 2, 3, 4]]
    assert under_way.cancelled() and waiting.cancelled() and group.cancelled()


async def test_drain_runs_everything_without_lingering() -> None:
    runs = Runs(gated=True)
    batcher: Batcher[int, int] = Batcher("x", runs, lanes=1, max_linger=FOREVER, max_pause=FOREVER)
    runs.gate.set()
    await asyncio.gather(*(batcher.submit(n) for n in range(3)))
    runs.gate.clear()
    lingering = asyncio.ensure_future(batcher.submit(3))
    await turns()
    assert batcher.waiting == 1
    drains = [asyncio.ensure_future(batcher.drain()) for _ in range(2)]
    await runs.batch_count(2)
    late = asyncio.ensure_future(batcher.submit(4))
    await turns()
    assert not any(drain.done() for drain in drains)
    runs.gate.set()
    await asyncio.gather(*drains)
    assert lingering.done() and late.done()
    assert runs.batches == [[0, 1, 2], [3], [4]]
    await batcher.drain()


async def test_batches_do_not_inherit_a_callers_context() -> None:
    field: contextvars.ContextVar[str] = contextvars.ContextVar("field", default="none")
    seen: list[str] = []

    async def run(items: list[int]) -> list[int]:
        seen.append(field.get())
        field.set("left behind")
        return items

    batcher: Batcher[int, int] = Batcher("x", run)
    field.set("a caller's")
    await batcher.submit(1)
    await batcher.submit(2)
    assert seen == ["none", "none"]


async def test_every_batch_is_reported() -> None:
    reports: list[tuple[int, bool]] = []
    batcher: Batcher[int, int] = Batcher(
        "x", Runs(), on_batch=lambda size, seconds: reports.append((size, seconds >= 0))
    )
    await batcher.submit_many([1, 2])
    await batcher.drain()
    assert reports == [(2, True)]


@pytest.mark.parametrize(
    "options", [{"max_items": 0}, {"lanes": 0}, {"max_linger": -1.0}, {"max_pause": -1.0}], ids=str
)
async def test_senseless_limits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_items and lanes must be at least 1"):
        Batcher("x", Runs(), **options)  # type: ignore[arg-type]


async def test_a_thousand_callers_in_a_loop_are_all_answered() -> None:
    async def run(items: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [-n for n in items]

    batcher: Batcher[int, int] = Batcher("x", run, max_items=64)

    async def caller(number: int) -> None:
        for step in range(5):
            assert await batcher.submit(number * 5 + step) == -(number * 5 + step)

    await asyncio.gather(*(caller(number) for number in range(1000)))
    assert batcher.waiting == 0
