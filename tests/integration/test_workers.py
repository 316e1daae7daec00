"""Workers: seen, declared, quarantined (queue.md 2.11, 3.8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server import app
from server.config import Settings
from server.dispatch.seen import SeenWorkers
from server.domain.slugid import nice
from server.errors import InputError, InputValidationError, InsufficientScopes, ResourceNotFound
from server.services import Services
from server.views import stamp
from tests.plugins.services import Api

QUEUE = {"provisioner_id": "prov", "worker_type": "work"}
WORKER = {**QUEUE, "worker_group": "g", "worker_id": "w"}
SCOPE = "prov/work/g/w"


def now() -> datetime:
    return datetime.now(UTC)


def near(at: Timestamp, moment: datetime, slack_s: float = 10) -> bool:
    return abs(at.ToDatetime(UTC) - moment) < timedelta(seconds=slack_s)


async def get(api: Api, **fields: str) -> Any:
    return (await api("GetWorker", **{**WORKER, **fields})).worker


async def expire(services: Services, worker_id: str = "w") -> None:
    await services.db.fetch(
        "UPDATE workers SET expires = now() - interval '1 second' WHERE worker_id = $1::text", (worker_id,)
    )


# -- seen ------------------------------------------------------------------------------------------


async def test_first_sight(api: Api, services: Services) -> None:
    """Q-187, Q-195: worker and queue are there when `saw` returns, for a day."""
    assert await services.seen.saw("prov/work", "g", "w") is None
    worker = await get(api)
    assert (worker.provisioner_id, worker.worker_type, worker.task_queue_id) == ("prov", "work", "prov/work")
    assert (worker.worker_group, worker.worker_id, list(worker.recent_tasks)) == ("g", "w", [])
    assert near(worker.expires, now() + timedelta(days=1))
    assert near(worker.first_claim, now()) and worker.first_claim == worker.last_date_active
    assert worker.quarantine_until.ToDatetime(UTC).year == now().year - 10
    queue = (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue
    assert near(queue.expires, now() + timedelta(days=1)) and near(queue.last_date_active, now())


async def test_written_once_per_interval(services: Services) -> None:
    """Q-197: in between, memory answers, and nothing is asked of the database."""
    await services.seen.saw("prov/work", "g", "w")
    before = await _active(services)
    await services.db.close()
    for _ in range(100):
        assert await services.seen.saw("prov/work", "g", "w") is None
    assert before


@pytest.fixture
async def eager(services: Services) -> AsyncIterator[SeenWorkers]:
    """One that writes at every sight."""
    settings = replace(services.settings, worker_info_update_s=0.0)
    seen = SeenWorkers(services.db, services.hub, settings, services.clock)
    yield seen
    await seen.close()


async def test_written_again_when_due(services: Services, eager: SeenWorkers) -> None:
    """queue.md 2.11: a due write moves lastDateActive, and expiry only forwards; first claim and
    quarantine stay."""
    await eager.saw("prov/work", "g", "w")
    await services.db.fetch(
        "UPDATE workers SET last_date_active = 'epoch', expires = now() + interval '9 days'"
    )
    await services.db.fetch("UPDATE task_queues SET last_date_active = 'epoch', expires = now()")
    await eager.saw("prov/work", "g", "w")
    ((active, expires),) = await services.db.fetch("SELECT last_date_active, expires FROM workers")
    assert active > now() - timedelta(seconds=10) and expires > now() + timedelta(days=8)
    ((active, expires),) = await services.db.fetch("SELECT last_date_active, expires FROM task_queues")
    assert active > now() - timedelta(seconds=10) and expires > now() + timedelta(hours=23)


async def test_many_at_once_share_statements(services: Services) -> None:
    """A hundred workers that come together, some of them twice, are written in a few statements."""
    statements = 0
    fetch = services.db.fetch

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += 1
        return await fetch(*args, **kwargs)

    services.db.fetch = counted  # type: ignore[method-assign]
    names = [f"w{n % 80}" for n in range(100)]
    answers = await asyncio.gather(*[services.seen.saw(f"prov/q{len(n)}", "g", n) for n in names])
    assert answers == [None] * 100 and statements <= 3
    ((workers,),) = await fetch("SELECT count(*) FROM workers")
    ((queues,),) = await fetch("SELECT count(*) FROM task_queues")
    assert (workers, queues) == (80, 2)


async def test_a_failed_first_write_is_tried_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written counts as unseen."""
    fetch = services.db.fetch

    async def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no")

    monkeypatch.setattr(services.db, "fetch", broken)
    with pytest.raises(OSError):
        await services.seen.saw("prov/work", "g", "w")
    monkeypatch.setattr(services.db, "fetch", fetch)
    await services.seen.saw("prov/work", "g", "w")
    assert len(await fetch("SELECT FROM workers")) == 1


async def test_claim_by_name_shows_the_queue_only(api: Api, services: Services) -> None:
    """queue.md 2.11: claimTask makes the queue, for five days, and no worker."""
    await services.seen.saw_queue("prov/work")
    queue = (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue
    assert near(queue.expires, now() + timedelta(days=5))
    with pytest.raises(ResourceNotFound):
        await get(api)
    await services.db.fetch("DELETE FROM task_queues")
    await services.seen.saw_queue("prov/work")
    assert not await services.db.fetch("SELECT FROM task_queues")


async def test_after_claiming(api: Api) -> None:
    """Q-187, Q-188, Q-230: after the reply, reads show queue, worker and the latest 20 runs in the
    order of the reply; a list shows the last of them."""
    for _ in range(30):
        await api.create()
    claims = await api.claim(worker="g/w", tasks=30)
    assert len(claims) == 30
    worker = await get(api)
    latest = [(claim.status.task_id, claim.run_id) for claim in claims][-20:]
    assert [(run.task_id, run.run_id) for run in worker.recent_tasks] == latest
    (summary,) = (await api("ListWorkers", **QUEUE)).workers
    assert (summary.latest_task.task_id, summary.latest_task.run_id) == latest[-1]
    assert (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue.task_queue_id == "prov/work"
    assert (await api("GetWorkerType", **QUEUE)).worker_type.worker_type == "work"
    assert (await api("GetProvisioner", provisioner_id="prov")).provisioner.provisioner_id == "prov"


# -- quarantine ------------------------------------------------------------------------------------


async def test_quarantine(api: Api, services: Services) -> None:
    """Q-189: holds at once, keeps the row for a day at least, and a past date lifts it."""
    await services.seen.saw("prov/work", "g", "w")
    await services.db.fetch("UPDATE workers SET expires = now() + interval '1 minute'")
    until = (now() + timedelta(hours=3)).replace(microsecond=123456)
    answer = (await api("QuarantineWorker", **WORKER, quarantine_until=stamp(until))).worker
    assert answer == await get(api)
    assert answer.quarantine_until == stamp(until) and answer.quarantine_until.nanos == 123_000_000
    assert near(answer.expires, now() + timedelta(days=1))
    assert await services.seen.saw("prov/work", "g", "w") == until.replace(microsecond=123000).timestamp()
    past = now() - timedelta(days=1)
    await api("QuarantineWorker", **WORKER, quarantine_until=stamp(past))
    assert await services.seen.saw("prov/work", "g", "w") is None
    assert (await get(api)).quarantine_until == stamp(past)


async def test_quarantine_history(api: Api, services: Services) -> None:
    """queue.md 2.11: who, when, until when and why, in order."""
    await services.seen.saw("prov/work", "g", "w")
    until = stamp(datetime(2030, 1, 2, 3, 4, 5, 678000, UTC))
    await api("QuarantineWorker", **WORKER, quarantine_until=until)
    await api("QuarantineWorker", **WORKER, quarantine_until=until, quarantine_info='it "smells"')
    ((history,),) = await services.db.fetch("SELECT quarantine_details::text FROM workers")
    entries = json.loads(history)
    assert [entry["quarantineInfo"] for entry in entries] == ["[unspecified]", 'it "smells"']
    for entry in entries:
        assert entry["clientId"] == "test/client"
        assert entry["quarantineUntil"] == "2030-01-02T03:04:05.678Z"
        assert abs(datetime.fromisoformat(entry["updatedAt"]) - now()) < timedelta(seconds=10)
        assert len(entry["updatedAt"]) == 24


async def test_quarantine_of_the_unknown(api: Api, services: Services) -> None:
    """Q-189: 404 and no row; the queue need not exist, and an expired row will do."""
    later = stamp(now() + timedelta(hours=1))
    with pytest.raises(ResourceNotFound):
        await api("QuarantineWorker", **WORKER, quarantine_until=later)
    assert not await services.db.fetch("SELECT FROM workers")
    await services.seen.saw("prov/work", "g", "w")
    await expire(services)
    await services.db.fetch("DELETE FROM task_queues")
    await api("QuarantineWorker", **WORKER, quarantine_until=later)
    with pytest.raises(ResourceNotFound):  # T-40
        await get(api)


async def test_quarantine_scope_and_input(api: Api, services: Services) -> None:
    """403 comes first; what the database or the calendar does not know is 400."""
    later = stamp(now() + timedelta(hours=1))
    with pytest.raises(InsufficientScopes):
        await api.having("queue:quarantine-worker:prov/work/g/x")(
            "QuarantineWorker", **WORKER, quarantine_until=later
        )
    allowed = api.having(f"queue:quarantine-worker:{SCOPE}")
    with pytest.raises(ResourceNotFound):
        await allowed("QuarantineWorker", **WORKER, quarantine_until=later)
    for fields in (
        {},
        {"quarantine_until": Timestamp(seconds=10**15)},
        {"quarantine_until": later, "quarantine_info": "x" * 4001},
        {"quarantine_until": later, "quarantine_info": "a\0b"},
    ):
        with pytest.raises(InputValidationError):
            await allowed("QuarantineWorker", **WORKER, **fields)


async def test_quarantine_reaches_other_processes(services: Services, settings: Settings) -> None:
    """A quarantine set in one process holds in another, and its listeners are told."""
    elsewhere = await app.start(settings)
    try:
        seen = elsewhere.services.seen
        assert await seen.saw("prov/work", "g", "w") is None
        told: asyncio.Future[tuple[str, str, str, float]] = asyncio.get_running_loop().create_future()
        unsubscribe = seen.subscribe(lambda *news: told.set_result(news))
        until = stamp(now() + timedelta(hours=1))
        await _announced(services, elsewhere.services)
        await Api(services, "*")("QuarantineWorker", **WORKER, quarantine_until=until)
        news = await asyncio.wait_for(told, 5)
        assert news == ("prov/work", "g", "w", until.ToMilliseconds() / 1000)
        assert await seen.saw("prov/work", "g", "w") == news[3]
        unsubscribe()
        seen.announce("prov/work", "g", "w", 0.0)
    finally:
        await elsewhere.close()


async def test_quarantine_is_read_again_after_a_gap(api: Api, services: Services) -> None:
    """A message that was lost is made up for when the hub says that some were."""
    await services.seen.saw("prov/work", "g", "w")
    await services.seen.saw("prov/work", "g", "other")
    told: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    services.seen.subscribe(lambda *news: told.put_nowait(news))
    await services.db.fetch(
        "UPDATE workers SET quarantine_until = '2100-01-01T00:00:00Z' WHERE worker_id = 'w'"
    )
    services.seen._missed_some()
    until = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
    assert await asyncio.wait_for(told.get(), 5) == ("prov/work", "g", "w", until)
    assert await services.seen.saw("prov/work", "g", "w") == until
    assert await services.seen.saw("prov/work", "g", "other") is None
    assert told.empty()


async def test_a_message_beats_an_older_reading(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarantine heard of while the first write is under way is not undone by its answer."""
    fetch = services.db.fetch

    async def overtaken(*args: Any, **kwargs: Any) -> Any:
        rows = await fetch(*args, **kwargs)
        services.seen.announce("prov/work", "g", "w", 4e9)
        return rows

    monkeypatch.setattr(services.db, "fetch", overtaken)
    assert await services.seen.saw("prov/work", "g", "w") == 4e9


async def test_quarantined_without_being_seen(api: Api, services: Services) -> None:
    """claimTask asks without noting anything; an unknown worker is not quarantined."""
    assert await services.seen.quarantined("prov/work", "g", "w") is None
    assert not await services.db.fetch("SELECT FROM workers")
    await api("DeclareWorker", **WORKER)
    until = now() + timedelta(hours=1)
    await api("QuarantineWorker", **WORKER, quarantine_until=stamp(until))
    assert await services.seen.quarantined("prov/work", "g", "w") == stamp(until).ToMilliseconds() / 1000
    await services.seen.saw("prov/work", "g", "w")
    await api("QuarantineWorker", **WORKER, quarantine_until=stamp(now() - timedelta(hours=1)))
    assert await services.seen.quarantined("prov/work", "g", "w") is None


async def test_memory_is_bounded(
    services: Services, eager: SeenWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not come back is forgotten, and there is an upper limit."""
    await eager.saw("prov/work", "g", "w1")
    await eager.saw_queue("prov/work")
    await eager.saw("prov/work", "g", "w2")
    assert list(eager._workers) == [("prov/work", "g", "w2")] and not eager._queues
    monkeypatch.setattr("server.dispatch.seen._MOST_REMEMBERED", 3)
    for n in range(9):
        await services.seen.saw("prov/work", "g", f"w{n}")
    assert len(services.seen._workers) == 3


# -- reading ---------------------------------------------------------------------------------------


async def test_visibility(api: Api, services: Services) -> None:
    """Q-190: a quarantined worker stays visible past its expiry, a plain one does not; its queue must be
    live for getWorker, not for the list."""
    for worker_id in ("plain", "held", "live"):
        await services.seen.saw("prov/work", "g", worker_id)
    held = {**WORKER, "worker_id": "held"}
    await api("QuarantineWorker", **held, quarantine_until=stamp(now() + timedelta(days=2)))
    await expire(services, "held")
    await expire(services, "plain")
    assert (await get(api, worker_id="held")).worker_id == "held"
    with pytest.raises(ResourceNotFound):
        await get(api, worker_id="plain")
    listed = (await api("ListWorkers", **QUEUE)).workers
    assert [worker.worker_id for worker in listed] == ["held", "live"]
    assert [worker.HasField("quarantine_until") for worker in listed] == [True, False]
    assert not any(worker.HasField("latest_task") for worker in listed)
    await services.db.fetch("UPDATE task_queues SET expires = now()")
    with pytest.raises(ResourceNotFound):
        await get(api, worker_id="live")
    assert len((await api("ListWorkers", **QUEUE)).workers) == 2


async def test_list_in_order_and_in_pages(api: Api, services: Services) -> None:
    """Q-194, Q-238: by group, then id; other queues' workers are not there."""
    names = [("a", "z"), ("b", "a"), ("b", "b"), ("b-c", "a"), ("c", "a")]
    for group, worker_id in reversed(names):
        await services.seen.saw("prov/work", group, worker_id)
    await services.seen.saw("prov/works", "a", "a")
    found, token = [], ""
    for size in (2, 2, 1):
        page = await api("ListWorkers", **QUEUE, limit=2, continuation_token=token)
        found += [(worker.worker_group, worker.worker_id) for worker in page.workers]
        token = page.continuation_token
        assert len(page.workers) == size
    assert found == names and not token
    exact = await api("ListWorkers", **QUEUE, limit=5)
    assert len(exact.workers) == 5 and not exact.continuation_token
    first = await api("ListWorkers", **QUEUE, limit=1)
    rest = await api("ListWorkers", **QUEUE, continuation_token=first.continuation_token)
    assert len(rest.workers) == 4 and not rest.continuation_token
    with pytest.raises(InputError):
        await api("ListWorkers", **QUEUE, continuation_token="not a token")
    assert not (await api("ListWorkers", provisioner_id="prov", worker_type="none")).workers


async def test_list_filtered(api: Api, services: Services) -> None:
    """Q-191: only quarantined ones, only others, or all; tokens lead through."""
    for n in range(6):
        await services.seen.saw("prov/work", "g", f"w{n}")
    for n in (1, 3, 5):
        worker = {**WORKER, "worker_id": f"w{n}"}
        await api("QuarantineWorker", **worker, quarantine_until=stamp(now() + timedelta(hours=1)))

    async def listed(**fields: Any) -> list[str]:
        found, token = [], ""
        while True:
            page = await api("ListWorkers", **QUEUE, limit=2, continuation_token=token, **fields)
            found += [worker.worker_id for worker in page.workers]
            token = page.continuation_token
            if not token:
                return found

    assert await listed() == [f"w{n}" for n in range(6)]
    assert await listed(quarantined=True) == ["w1", "w3", "w5"]
    assert await listed(quarantined=False) == ["w0", "w2", "w4"]


async def test_scopes(api: Api) -> None:
    """Each method asks for its own scope."""
    await api("DeclareWorker", **WORKER)
    for method, fields, scope in (
        ("GetWorker", WORKER, f"queue:get-worker:{SCOPE}"),
        ("ListWorkers", QUEUE, "queue:list-workers:prov/work"),
    ):
        await api.having(scope)(method, **fields)
        with pytest.raises(InsufficientScopes):
            await api.having(scope[:-1])(method, **fields)


# -- declared --------------------------------------------------------------------------------------


async def test_declare(api: Api) -> None:
    """Q-192: makes worker and queue, moves expiry forwards and never back."""
    far, near_by = stamp(now() + timedelta(days=9)), stamp(now() + timedelta(days=2))
    worker = (await api("DeclareWorker", **WORKER, expires=far)).worker
    assert worker.expires == far and worker == await get(api)
    assert (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue.expires == far
    assert (await api("DeclareWorker", **WORKER, expires=near_by)).worker.expires == far
    farther = stamp(now() + timedelta(days=10))
    assert (await api("DeclareWorker", **WORKER, expires=farther)).worker.expires == farther
    assert (await api("DeclareWorker", **WORKER)).worker.expires == farther


async def test_declare_nothing(api: Api) -> None:
    """Q-229: without a property no scope is needed, and expiry is a day from now."""
    worker = (await api.having()("DeclareWorker", **WORKER)).worker
    assert near(worker.expires, now() + timedelta(days=1))
    queue = (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue
    assert near(queue.expires, now() + timedelta(days=1))


async def test_declare_scope_per_property(api: Api) -> None:
    """Q-193."""
    expires = stamp(now() + timedelta(days=2))
    await api.having(f"queue:declare-worker:{SCOPE}#expires")("DeclareWorker", **WORKER, expires=expires)
    with pytest.raises(InsufficientScopes):
        await api.having(f"queue:declare-worker:{SCOPE}#other")("DeclareWorker", **WORKER, expires=expires)


async def test_declare_in_the_past(api: Api, services: Services) -> None:
    """queue.md 3.8: 400 when nobody would see the worker, and nothing is written; fine if it lives anyway."""
    past = stamp(now() - timedelta(days=1))
    with pytest.raises(InputError):
        await api("DeclareWorker", **WORKER, expires=past)
    assert not await services.db.fetch("SELECT FROM workers")
    assert not await services.db.fetch("SELECT FROM task_queues")
    await api("DeclareWorker", **WORKER)
    assert near(
        (await api("DeclareWorker", **WORKER, expires=past)).worker.expires, now() + timedelta(days=1)
    )


async def _active(services: Services) -> Any:
    return (await services.db.fetch("SELECT last_date_active FROM workers"))[0][0]


async def _announced(here: Services, there: Services) -> None:
    """Waits until a message of one process reaches the other: it may have just come and not be known."""
    heard = asyncio.Event()
    unsubscribe = there.hub.subscribe("test", lambda _: heard.set())
    while not heard.is_set():
        here.hub.publish("test", nice())
        try:
            await asyncio.wait_for(heard.wait(), 0.05)
        except TimeoutError:
            continue
    unsubscribe()
