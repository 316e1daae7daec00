"""Task queues, workers, provisioners, counts (queue.md 2.11, 3.8)."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from server.loops.queue_metrics import QueueMetrics
from tcqueue.v1.options_pb2 import Stability
from tests.conformance.building import QUEUE, at, definition, new_id, now
from tests.conformance.door import METHODS, refused, strange
from tests.conformance.shown import ids, moment
from tests.plugins.server import Queue

TYPE = {"provisioner_id": "prov", "worker_type": "work"}
WORKER = {**TYPE, "worker_group": "group", "worker_id": "worker"}
WORKER_SCOPE = "prov/work/group/worker"


async def declare(queue: Queue, queue_id: str = QUEUE, worker: str = "group/worker", **fields: Any) -> Any:
    """A declared worker."""
    (provisioner, worker_type), (group, worker_id) = queue_id.split("/"), worker.split("/")
    reply = await queue(
        "DeclareWorker",
        provisioner_id=provisioner,
        worker_type=worker_type,
        worker_group=group,
        worker_id=worker_id,
        **fields,
    )
    return reply.worker


async def quarantine(queue: Queue, **until: float) -> Any:
    """The worker in quarantine until then."""
    return (await queue("QuarantineWorker", **WORKER, quarantine_until=at(**until))).worker


async def test_a_claim_makes_queue_and_worker(queue: Queue) -> None:
    """Q-187 T-44: all four ways to see them, each at once; creating a task makes neither."""
    await queue.create()
    ways = {
        "GetWorker": WORKER,
        "GetWorkerType": TYPE,
        "GetTaskQueue": {"task_queue_id": QUEUE},
        "GetProvisioner": {"provisioner_id": "prov"},
    }
    for method, fields in ways.items():
        with refused("ResourceNotFound"):
            await queue(method, **fields)
    (claim,) = await queue.claim()
    worker, worker_type, task_queue, provisioner = [
        next(value for _, value in (await queue(method, **fields)).ListFields())
        for method, fields in ways.items()
    ]
    assert (worker.task_queue_id, worker.worker_group, worker.worker_id) == (QUEUE, "group", "worker")
    assert [(run.task_id, run.run_id) for run in worker.recent_tasks] == [(claim.status.task_id, 0)]
    assert worker_type.task_queue_id == task_queue.task_queue_id == QUEUE
    assert provisioner.provisioner_id == "prov"
    for seen in (worker, worker_type, task_queue, provisioner):
        assert timedelta(hours=23) < moment(seen.expires) - now() < timedelta(hours=25)
        assert abs(now() - moment(seen.last_date_active)) < timedelta(minutes=1)


async def test_a_claim_by_name_makes_a_queue(queue: Queue) -> None:
    """Q-187 T-44: for five days, and no worker."""
    task_id = (await queue.create()).task_id
    await queue("ClaimTask", task_id=task_id, run_id=0, worker_group="group", worker_id="worker")
    task_queue = (await queue("GetTaskQueue", task_queue_id=QUEUE)).task_queue
    assert timedelta(days=4.9) < moment(task_queue.expires) - now() < timedelta(days=5.1)
    with refused("ResourceNotFound"):
        await queue("GetWorker", **WORKER)


async def test_reclaiming_makes_a_queue_and_a_worker(queue: Queue) -> None:
    """T-44: as claiming does."""
    task_id = (await queue.create()).task_id
    await queue("ClaimTask", task_id=task_id, run_id=0, worker_group="group", worker_id="worker")
    await queue("ReclaimTask", task_id=task_id, run_id=0)
    assert (await queue("GetWorker", **WORKER)).worker.worker_id == "worker"


async def test_recent_tasks(queue: Queue) -> None:
    """Q-188 Q-230: the latest 20 in the order of the replies; the last one in lists."""
    tasks = [{"task_id": new_id(), "task": definition()} for _ in range(24)]
    await queue("CreateTasks", tasks=tasks)
    claimed: list[str] = []
    for count in (3, 1, 20):
        claimed += ids(await queue.claim(count))
        worker = (await queue("GetWorker", **WORKER)).worker
        assert [run.task_id for run in worker.recent_tasks] == claimed[-20:]
    (listed,) = (await queue("ListWorkers", **TYPE)).workers
    assert (listed.latest_task.task_id, listed.latest_task.run_id) == (claimed[-1], 0)


async def test_thirty_claims_at_once(queue: Queue) -> None:
    """Q-230: the last 20 stay."""
    await queue("CreateTasks", tasks=[{"task_id": new_id(), "task": definition()} for _ in range(30)])
    claims = await queue.claim(30)
    worker = (await queue("GetWorker", **WORKER)).worker
    assert [run.task_id for run in worker.recent_tasks] == ids(claims)[10:]


async def test_quarantine(queue: Queue) -> None:
    """Q-189 T-41: until a time; a past one lifts it; unknown workers are 404."""
    with refused("ResourceNotFound"):
        await quarantine(queue, hours=1)
    await declare(queue)
    fresh = (await queue("GetWorker", **WORKER)).worker
    assert moment(fresh.quarantine_until) < now(days=-365 * 9)
    worker = await quarantine(queue, hours=1)
    assert timedelta(minutes=59) < moment(worker.quarantine_until) - now() < timedelta(minutes=61)
    assert (await queue("GetWorker", **WORKER)).worker == worker
    (listed,) = (await queue("ListWorkers", **TYPE)).workers
    assert listed.quarantine_until == worker.quarantine_until
    await quarantine(queue, hours=-1)
    (listed,) = (await queue("ListWorkers", **TYPE)).workers
    assert not listed.HasField("quarantine_until") and not listed.HasField("latest_task")
    with refused("InsufficientScopes"):
        await queue.having(f"queue:quarantine-worker:{WORKER_SCOPE}-2")(
            "QuarantineWorker", **WORKER, quarantine_until=at()
        )
    with refused("InputValidationError"):
        await queue("QuarantineWorker", **WORKER)
    with refused("InputValidationError"):
        await queue("QuarantineWorker", **WORKER, quarantine_until=at(), quarantine_info="x" * 4001)


async def test_a_quarantine_keeps_the_worker_for_a_day(queue: Queue) -> None:
    """Q-189: at least."""
    for hours, expected in ((1, 24), (48, 48)):
        await declare(queue, expires=at(hours=hours))
        worker = await quarantine(queue, hours=-1)
        assert abs(moment(worker.expires) - now(hours=expected)) < timedelta(minutes=1)


async def test_claims_by_name_are_recent_tasks_too(queue: Queue) -> None:
    """Q-188: of a worker that is known; a repeat adds nothing."""
    await declare(queue)
    task_id = (await queue.create()).task_id
    for _ in range(2):
        await queue("ClaimTask", task_id=task_id, run_id=0, worker_group="group", worker_id="worker")
        worker = (await queue("GetWorker", **WORKER)).worker
        assert [(run.task_id, run.run_id) for run in worker.recent_tasks] == [(task_id, 0)]


async def test_a_quarantine_outlives_the_worker(queue: Queue) -> None:
    """Q-190 T-41: still seen, while one that has only expired is not."""
    await declare(queue, expires=at(hours=1))
    await quarantine(queue, days=9)
    await declare(queue, worker="group/plain", expires=at(hours=1))
    await queue.pass_time(days=2)
    await declare(queue, worker="group/new")
    await queue.expire()
    await queue("GetWorker", **WORKER)
    with refused("ResourceNotFound"):
        await queue("GetWorker", **{**WORKER, "worker_id": "plain"})
    assert [w.worker_id for w in (await queue("ListWorkers", **TYPE)).workers] == ["new", "worker"]


async def test_quarantined_and_other_workers(queue: Queue) -> None:
    """Q-191 T-42: one or the other, or both."""
    for n in range(3):
        await declare(queue, worker=f"group/w{n}")
    await queue("QuarantineWorker", **{**WORKER, "worker_id": "w1"}, quarantine_until=at(hours=1))
    for wanted, expected in ((True, ["w1"]), (False, ["w0", "w2"])):
        found, token, pages = [], "", 0
        while token or not pages:
            page = await queue("ListWorkers", **TYPE, quarantined=wanted, limit=1, continuation_token=token)
            found += [w.worker_id for w in page.workers]
            token, pages = page.continuation_token, pages + 1
        assert found == expected
    assert len((await queue("ListWorkers", **TYPE)).workers) == 3


async def test_declaring_a_worker(queue: Queue) -> None:
    """Q-192 Q-229 T-45: made with its queue, for a day unless told; later never shortens."""
    worker = await declare(queue)
    assert timedelta(hours=23.9) < moment(worker.expires) - now() < timedelta(hours=24.1)
    longer = await declare(queue, expires=at(days=3))
    assert timedelta(days=2.9) < moment(longer.expires) - now() < timedelta(days=3.1)
    assert (await declare(queue, expires=at(hours=1))).expires == longer.expires
    assert (await declare(queue)).expires == longer.expires
    task_queue = (await queue("GetTaskQueue", task_queue_id=QUEUE)).task_queue
    assert task_queue.expires == longer.expires
    with refused("InputValidationError"):
        await queue.having("nothing").send(
            "DeclareWorker", strange(METHODS["DeclareWorker"].request_class(**WORKER))
        )
    with refused("InputError"):
        await declare(queue, "prov/other", expires=at(days=-3))


async def test_a_scope_for_each_property(queue: Queue) -> None:
    """Q-193 T-45: none for nothing."""
    await queue.having("nothing")("DeclareWorker", **WORKER)
    scope = f"queue:declare-worker:{WORKER_SCOPE}#expires"
    await queue.having(scope)("DeclareWorker", **WORKER, expires=at(days=1))
    with refused("InsufficientScopes", scope):
        await queue.having("nothing")("DeclareWorker", **WORKER, expires=at(days=1))


async def test_older_declarations(queue: Queue) -> None:
    """Q-193 Q-195: a worker type's properties, each with its scope; a provisioner's change nothing."""
    fields = {"description": "about it", "stability": Stability.STABILITY_STABLE, "expires": at(days=9)}
    scopes = [f"queue:declare-worker-type:{QUEUE}#{name}" for name in fields]
    for missing in scopes:
        with refused("InsufficientScopes", missing):
            await queue.having(*(s for s in scopes if s != missing))("DeclareWorkerType", **TYPE, **fields)
    shown = (await queue.having(*scopes)("DeclareWorkerType", **TYPE, **fields)).worker_type
    assert (shown.description, shown.stability) == ("about it", Stability.STABILITY_STABLE)
    assert (await queue("GetWorkerType", **TYPE)).worker_type == shown
    provisioner = (await queue("GetProvisioner", provisioner_id="prov")).provisioner
    again = await queue("DeclareProvisioner", provisioner_id="prov", description="other")
    assert again.provisioner == provisioner
    assert (provisioner.description, provisioner.stability) == ("", Stability.STABILITY_EXPERIMENTAL)
    with refused("ResourceNotFound"):
        await queue("DeclareProvisioner", provisioner_id="unknown")


LISTS: list[tuple[str, str, dict[str, str]]] = [
    ("ListTaskQueues", "task_queues", {}),
    ("ListWorkerTypes", "worker_types", {"provisioner_id": "prov"}),
    ("ListWorkers", "workers", TYPE),
    ("ListProvisioners", "provisioners", {}),
]


async def test_pages(queue: Queue) -> None:
    """Q-194 Q-238 T-48: one of two, then the other without a token; without a limit all the rest."""
    for n in "123":
        await declare(queue, worker=f"group/w{n}")
        await declare(queue, f"prov/work{n}")
        await declare(queue, f"prov{n}/work")
    for method, field, fields in LISTS:
        whole = list(getattr(await queue(method, **fields), field))
        paged, token = [], ""
        for left in range(len(whole), 0, -1):
            page = await queue(method, **fields, limit=1, continuation_token=token)
            paged += getattr(page, field)
            rest = await queue(method, **fields, continuation_token=token)
            assert (len(getattr(rest, field)), rest.continuation_token) == (left, "")
            token = page.continuation_token
            assert bool(token) == (left > 1), method
        assert paged == whole and len(whole) >= 3
        with refused("InputError"):
            await queue(method, **fields, continuation_token="not/one")
        assert list(getattr(await queue(method, **fields, continuation_token="gone"), field)) == whole
        assert list(getattr(await queue(method, **fields, limit=100_000), field)) == whole
        with refused("InsufficientScopes"):
            await queue.having("nothing")(method, **fields)
    assert not (await queue("ListWorkerTypes", provisioner_id="unknown")).worker_types


async def test_what_a_queue_is_by_default(queue: Queue) -> None:
    """Q-195: experimental, without a description."""
    await declare(queue)
    shown = [
        (await queue("GetTaskQueue", task_queue_id=QUEUE)).task_queue,
        (await queue("GetWorkerType", **TYPE)).worker_type,
        (await queue("GetProvisioner", provisioner_id="prov")).provisioner,
        (await queue("ListTaskQueues")).task_queues[0],
    ]
    for item in shown:
        assert (item.description, item.stability) == ("", Stability.STABILITY_EXPERIMENTAL)


@pytest.mark.settings(worker_info_expiration_delay_s=-1800.0)
async def test_expired_queues_and_workers(queue: Queue) -> None:
    """Q-196 T-40: unseen at once, deleted half an hour later."""
    await declare(queue, expires=at(hours=1))
    await queue.pass_time(minutes=70)
    for method, fields in (
        ("GetWorker", WORKER),
        ("GetWorkerType", TYPE),
        ("GetTaskQueue", {"task_queue_id": QUEUE}),
        ("GetProvisioner", {"provisioner_id": "prov"}),
    ):
        with refused("ResourceNotFound"):
            await queue(method, **fields)
    for method, field, fields in LISTS:
        assert not getattr(await queue(method, **fields), field)
    await queue.expire()
    assert (
        len(await queue.sql("select 1 from workers"))
        == len(await queue.sql("select 1 from task_queues"))
        == 1
    )
    # It is there to be quarantined, and its queue need not be.
    await quarantine(queue, hours=-1)
    await queue.pass_time(days=2)
    await queue.expire()
    assert await queue.sql("select 1 from workers") == await queue.sql("select 1 from task_queues") == []


async def test_a_worker_of_an_expired_queue(queue: Queue) -> None:
    """T-40: is not to be seen, whatever it is itself."""
    await declare(queue, expires=at(hours=1))
    await quarantine(queue, days=9)
    await queue.sql("update task_queues set expires = now() - interval '1 s'")
    with refused("ResourceNotFound"):
        await queue("GetWorker", **WORKER)
    await quarantine(queue, days=8)


async def test_when_a_worker_was_active(queue: Queue) -> None:
    """Q-197 T-43: noted at first sight, and then every half hour."""
    await queue.claim()
    first = (await queue("GetWorker", **WORKER)).worker
    assert first.first_claim == first.last_date_active
    await queue.create()
    await queue.claim()
    again = (await queue("GetWorker", **WORKER)).worker
    assert (again.last_date_active, again.expires) == (first.last_date_active, first.expires)


@pytest.mark.settings(worker_info_update_s=0.0)
async def test_when_a_worker_is_active_again(queue: Queue) -> None:
    """Q-197: noted anew when it is time."""
    await queue.claim()
    await queue.pass_time(hours=1)
    first = (await queue("GetWorker", **WORKER)).worker
    await queue.claim()
    again = (await queue("GetWorker", **WORKER)).worker
    assert moment(again.last_date_active) - moment(first.last_date_active) >= timedelta(hours=1)
    assert again.first_claim == first.first_claim
    assert moment(again.expires) > moment(first.expires)


async def test_counts(queue: Queue) -> None:
    """Q-199 Q-200 T-24: runs that wait and runs that are held, once each; 0 for an unknown queue."""
    for method in ("GetPendingTasksCount", "GetTaskQueueCounts"):
        unknown = await queue(method, task_queue_id="un/known")
        assert (unknown.provisioner_id, unknown.worker_type, unknown.task_queue_id) == (
            "un",
            "known",
            "un/known",
        )
        assert unknown.pending_tasks == 0
    task_id = (await queue.create()).task_id
    await queue.create()
    await queue.create()
    await queue.claim(2)
    for _ in range(2):
        await queue("ReclaimTask", task_id=task_id, run_id=0)
    counts = await queue("GetTaskQueueCounts", task_queue_id=QUEUE)
    assert (counts.pending_tasks, counts.claimed_tasks) == (1, 2)
    await queue.resolve(task_id, "completed")
    counts = await queue("GetTaskQueueCounts", task_queue_id=QUEUE)
    assert (counts.pending_tasks, counts.claimed_tasks) == (1, 1)
    scopes = [f"queue:pending-count:{QUEUE}", f"queue:claimed-count:{QUEUE}"]
    await queue.having(*scopes)("GetTaskQueueCounts", task_queue_id=QUEUE)
    for scope in scopes:
        with refused("InsufficientScopes"):
            await queue.having(scope)("GetTaskQueueCounts", task_queue_id=QUEUE)
    await queue.having(scopes[0])("GetPendingTasksCount", task_queue_id=QUEUE)


async def test_listing_pending_tasks(queue: Queue) -> None:
    """Q-201 T-27: definitions in the order of arrival, by pages."""
    created = [await queue.create(priority=p) for p in ("low", "high", "medium")]
    whole = (await queue("ListPendingTasks", task_queue_id=QUEUE)).tasks
    assert ids(whole) == [status.task_id for status in created]
    assert whole[0].task == await queue.task(created[0].task_id)
    assert (whole[0].run_id, whole[0].inserted) == (0, created[0].runs[0].scheduled)
    assert await pages(queue, "ListPendingTasks") == list(whole)
    await queue.claim()
    assert len((await queue("ListPendingTasks", task_queue_id=QUEUE)).tasks) == 2
    assert not (await queue("ListPendingTasks", task_queue_id="un/known")).tasks
    assert len((await queue("ListPendingTasks", task_queue_id=QUEUE, continuation_token="%")).tasks) == 2


async def test_listing_claimed_tasks(queue: Queue) -> None:
    """Q-201: one entry a run, by the time of its last claim or reclaim, by pages."""
    for _ in range(3):
        await queue.create()
    first, second, third = await queue.claim(3)
    await queue.pass_time(seconds=1)
    await queue("ReclaimTask", task_id=first.status.task_id, run_id=0)
    whole = (await queue("ListClaimedTasks", task_queue_id=QUEUE)).tasks
    assert ids(whole) == ids([second, third, first])
    entry = whole[0]
    assert (entry.run_id, entry.worker_group, entry.worker_id) == (0, "group", "worker")
    assert entry.task == await queue.task(second.status.task_id)
    assert await pages(queue, "ListClaimedTasks") == list(whole)
    await queue.resolve(second.status.task_id, "completed")
    await queue("CancelTask", task_id=third.status.task_id)
    assert ids((await queue("ListClaimedTasks", task_queue_id=QUEUE)).tasks) == [first.status.task_id]
    for method, scope in (("ListPendingTasks", "pending"), ("ListClaimedTasks", "claimed")):
        await queue.having(f"queue:{scope}-list:{QUEUE}")(method, task_queue_id=QUEUE)
        with refused("InsufficientScopes"):
            await queue.having(f"queue:{scope}-list:other/queue")(method, task_queue_id=QUEUE)


async def pages(queue: Queue, method: str) -> list[Any]:
    """A list of runs, page by page."""
    found: list[Any] = []
    token = ""
    while token or not found:
        page = await queue(method, task_queue_id=QUEUE, limit=1, continuation_token=token)
        assert len(page.tasks) == 1
        found += page.tasks
        token = page.continuation_token
    return found


async def test_gauges(queue: Queue) -> None:
    """queue.md 6.2: what is in every queue, and nothing any more of a queue that is gone."""
    labels = {"provisionerId": "prov", "workerType": f"w{uuid.uuid4().hex}"}
    queue_id = "/".join(labels.values())
    gauges = QueueMetrics(queue.services.db, pause_s=1.0)

    async def shown() -> dict[str, float | None]:
        await gauges.run_once()
        names = ("pending_tasks", "claimed_tasks", "workers_total", "quarantined_workers")
        return {
            name: REGISTRY.get_sample_value(f"queue_{name}", labels)
            for name in (*names, "running_workers", "idle_workers")
        }

    assert set((await shown()).values()) == {None}
    for _ in range(3):
        await queue.create(task_queue_id=queue_id)
    assert (await shown())["pending_tasks"] == 3
    for worker in ("group/a", "group/b", "group/c"):
        await declare(queue, queue_id, worker)
    named = {"provisioner_id": "prov", "worker_type": labels["workerType"], "worker_group": "group"}
    await queue("QuarantineWorker", **named, worker_id="c", quarantine_until=at(hours=1))
    await queue.claim(queue_id=queue_id, worker="group/a")
    assert await shown() == {
        "pending_tasks": 2,
        "claimed_tasks": 1,
        "workers_total": 3,
        "quarantined_workers": 1,
        "running_workers": 1,
        "idle_workers": 1,
    }
    await queue.sql("delete from runs where task_queue_id = $1", queue_id)
    await queue.sql("delete from workers where task_queue_id = $1", queue_id)
    await queue.sql("delete from task_queues where task_queue_id = $1", queue_id)
    assert set((await shown()).values()) == {None}
