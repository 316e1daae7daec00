"""Task queues, provisioners and worker types; what is pending and claimed (queue.md 2.11, 3.8)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.domain import paging
from server.domain.slugid import nice
from server.errors import (
    InputError,
    InputValidationError,
    InsufficientScopes,
    InvalidRequestArguments,
    ResourceNotFound,
)
from server.services import Services
from server.views import stamp
from tcqueue.v1.options_pb2 import Stability
from tcqueue.v1.task_pb2 import Priority
from tests.plugins.services import Api, definition

EXPERIMENTAL = Stability.STABILITY_EXPERIMENTAL


def now() -> datetime:
    return datetime.now(UTC)


async def make(api: Api, *queue_ids: str) -> None:
    for queue_id in queue_ids:
        provisioner_id, _, worker_type = queue_id.partition("/")
        await api("DeclareWorkerType", provisioner_id=provisioner_id, worker_type=worker_type)


async def expire(services: Services, queue_id: str) -> None:
    await services.db.fetch(
        "UPDATE task_queues SET expires = now() WHERE task_queue_id = $1::text", (queue_id,)
    )


async def walk(api: Api, method: str, field: str, limit: int, **fields: Any) -> list[list[Any]]:
    """All pages of a list."""
    found: list[list[Any]] = []
    token = ""
    while True:
        page = await api(method, continuation_token=token, limit=limit, **fields)
        found.append(list(getattr(page, field)))
        token = page.continuation_token
        if not token:
            return found


# -- queues under their three names ----------------------------------------------------------------


async def test_defaults(api: Api) -> None:
    """Q-195: description is empty, stability experimental, in all three views."""
    await make(api, "prov/work")
    queue = (await api("GetTaskQueue", task_queue_id="prov/work")).task_queue
    kind = (await api("GetWorkerType", provisioner_id="prov", worker_type="work")).worker_type
    provisioner = (await api("GetProvisioner", provisioner_id="prov")).provisioner
    for view in (queue, kind, provisioner):
        assert (view.description, view.stability) == ("", EXPERIMENTAL)
        assert view.expires == queue.expires and view.last_date_active == queue.last_date_active
    assert (kind.provisioner_id, kind.worker_type, kind.task_queue_id) == ("prov", "work", "prov/work")
    assert abs(queue.expires.ToDatetime(UTC) - now() - timedelta(days=5)) < timedelta(seconds=10)


async def test_unknown_and_expired(api: Api, services: Services) -> None:
    """Q-196: what has expired is gone before it is deleted; what is only a prefix is no provisioner."""
    await make(api, "prov/work", "other/work")
    await expire(services, "prov/work")
    for provisioner, kind in (("prov", "work"), ("othe", "work"), ("others", "work"), ("other", "wor")):
        with pytest.raises(ResourceNotFound):
            await api("GetTaskQueue", task_queue_id=f"{provisioner}/{kind}")
        with pytest.raises(ResourceNotFound):
            await api("GetWorkerType", provisioner_id=provisioner, worker_type=kind)
        if provisioner != "other":
            with pytest.raises(ResourceNotFound):
                await api("GetProvisioner", provisioner_id=provisioner)
            assert not (await api("ListWorkerTypes", provisioner_id=provisioner)).worker_types
    assert [q.task_queue_id for q in (await api("ListTaskQueues")).task_queues] == ["other/work"]
    assert [p.provisioner_id for p in (await api("ListProvisioners")).provisioners] == ["other"]


async def test_lists(api: Api) -> None:
    """Q-194, Q-238: by queue id, paginated, with a token exactly when there is more. `a-b/x` comes before
    `a/x`, and so do their provisioners."""
    ids = ["a-b/x", "a/x", "a/y", "a/z", "a0/x", "b/x"]
    await make(api, *reversed(ids))
    queues = await walk(api, "ListTaskQueues", "task_queues", 4)
    assert [[q.task_queue_id for q in page] for page in queues] == [ids[:4], ids[4:]]
    assert [len(page) for page in await walk(api, "ListTaskQueues", "task_queues", 6)] == [6]
    kinds = await walk(api, "ListWorkerTypes", "worker_types", 2, provisioner_id="a")
    assert [[k.worker_type for k in page] for page in kinds] == [["x", "y"], ["z"]]
    assert [k.task_queue_id for k in kinds[0]] == ["a/x", "a/y"]
    provisioners = await walk(api, "ListProvisioners", "provisioners", 1)
    assert [[p.provisioner_id for p in page] for page in provisioners] == [["a-b"], ["a"], ["a0"], ["b"]]
    assert [len(page) for page in await walk(api, "ListProvisioners", "provisioners", 4)] == [4]
    for method, field, fields in (
        ("ListTaskQueues", "task_queues", {}),
        ("ListWorkerTypes", "worker_types", {"provisioner_id": "a"}),
        ("ListProvisioners", "provisioners", {}),
    ):
        first = await api(method, limit=1, **fields)
        rest = await api(method, continuation_token=first.continuation_token, **fields)
        assert len(getattr(rest, field)) == len(getattr(await api(method, **fields), field)) - 1
        assert not rest.continuation_token
        with pytest.raises(InputError):
            await api(method, continuation_token="-", **fields)
        meaningless = await api(method, continuation_token=paging.token(1, 2), **fields)
        assert len(getattr(meaningless, field)) == len(getattr(rest, field)) + 1


async def test_provisioner_is_the_latest_of_its_queues(api: Api, services: Services) -> None:
    """queue.md 2.11: expires and lastDateActive are the maxima."""
    await make(api, "p/a", "p/b")
    await services.db.fetch(
        "UPDATE task_queues SET last_date_active = 'epoch', expires = '2100-01-01Z' "
        "WHERE task_queue_id = 'p/a'"
    )
    provisioner = (await api("GetProvisioner", provisioner_id="p")).provisioner
    (listed,) = (await api("ListProvisioners")).provisioners
    assert provisioner == listed
    assert provisioner.expires == stamp(datetime(2100, 1, 1, tzinfo=UTC))
    assert now() - provisioner.last_date_active.ToDatetime(UTC) < timedelta(seconds=10)


async def test_creating_a_task_makes_no_queue(api: Api) -> None:
    """T-44."""
    await api.create("prov/work")
    with pytest.raises(ResourceNotFound):
        await api("GetTaskQueue", task_queue_id="prov/work")


async def test_malformed_id(api: Api) -> None:
    """Q-116's rule for reading: 400 InvalidRequestArguments."""
    for queue_id in ("prov", "prov/Work", "a/b/c", "prov/work\n"):
        for method in ("GetTaskQueue", "GetPendingTasksCount", "GetTaskQueueCounts", "ListPendingTasks"):
            with pytest.raises(InvalidRequestArguments):
                await api(method, task_queue_id=queue_id)


# -- declaring -------------------------------------------------------------------------------------


async def test_declare_worker_type(api: Api, services: Services) -> None:
    """queue.md 3.8: what is given changes, the rest stays, expiry never moves back."""
    names = {"provisioner_id": "prov", "worker_type": "work"}
    far = stamp(now() + timedelta(days=20))
    made = await api(
        "DeclareWorkerType", **names, description="Fäst", stability=Stability.STABILITY_STABLE, expires=far
    )
    assert made.worker_type == (await api("GetWorkerType", **names)).worker_type
    assert (made.worker_type.description, made.worker_type.expires) == ("Fäst", far)
    assert made.worker_type.stability == Stability.STABILITY_STABLE
    await services.db.fetch("UPDATE task_queues SET last_date_active = 'epoch'")
    again = (await api("DeclareWorkerType", **names, description="")).worker_type
    assert (again.description, again.stability, again.expires) == ("", Stability.STABILITY_STABLE, far)
    assert now() - again.last_date_active.ToDatetime(UTC) < timedelta(seconds=10)


async def test_declare_scopes(api: Api) -> None:
    """queue.md 3.8: one scope for each property, none without."""
    names = {"provisioner_id": "prov", "worker_type": "work"}
    await api.having()("DeclareWorkerType", **names)
    await api.having()("DeclareProvisioner", provisioner_id="prov")
    expires = stamp(now() + timedelta(days=1))
    for method, fields, prefix in (
        ("DeclareWorkerType", names, "queue:declare-worker-type:prov/work#"),
        ("DeclareProvisioner", {"provisioner_id": "prov"}, "queue:declare-provisioner:prov#"),
    ):
        given = {"description": "x", "stability": EXPERIMENTAL, "expires": expires}
        await api.having(*[f"{prefix}{name}" for name in given])(method, **fields, **given)
        for name in given:
            with pytest.raises(InsufficientScopes):
                await api.having(*[f"{prefix}{n}" for n in given if n != name])(method, **fields, **given)


async def test_declare_provisioner_changes_nothing(api: Api) -> None:
    """queue.md 3.8: returns the derived provisioner, 404 without one, after the scopes."""
    with pytest.raises(InsufficientScopes):
        await api.having()("DeclareProvisioner", provisioner_id="prov", description="x")
    with pytest.raises(ResourceNotFound):
        await api("DeclareProvisioner", provisioner_id="prov", description="x")
    await make(api, "prov/work")
    declared = await api(
        "DeclareProvisioner", provisioner_id="prov", description="x", stability=Stability.STABILITY_STABLE
    )
    assert declared.provisioner == (await api("GetProvisioner", provisioner_id="prov")).provisioner
    assert (declared.provisioner.description, declared.provisioner.stability) == ("", EXPERIMENTAL)


async def test_declare_refuses(api: Api, services: Services) -> None:
    """A queue that would be expired, and a text that cannot be stored."""
    names = {"provisioner_id": "prov", "worker_type": "work"}
    with pytest.raises(InputError):
        await api("DeclareWorkerType", **names, expires=stamp(now() - timedelta(seconds=5)))
    with pytest.raises(InputValidationError):
        await api("DeclareWorkerType", **names, description="a\0")
    assert not await services.db.fetch("SELECT FROM task_queues")


@pytest.mark.parametrize(
    ("method", "fields", "scope"),
    [
        ("ListTaskQueues", {}, "queue:list-task-queues"),
        ("GetTaskQueue", {"task_queue_id": "prov/work"}, "queue:get-task-queue:prov/work"),
        ("ListProvisioners", {}, "queue:list-provisioners"),
        ("GetProvisioner", {"provisioner_id": "prov"}, "queue:get-provisioner:prov"),
        ("ListWorkerTypes", {"provisioner_id": "prov"}, "queue:list-worker-types:prov"),
        (
            "GetWorkerType",
            {"provisioner_id": "prov", "worker_type": "work"},
            "queue:get-worker-type:prov/work",
        ),
        ("ListPendingTasks", {"task_queue_id": "prov/work"}, "queue:pending-list:prov/work"),
        ("ListClaimedTasks", {"task_queue_id": "prov/work"}, "queue:claimed-list:prov/work"),
        ("GetPendingTasksCount", {"task_queue_id": "prov/work"}, "queue:pending-count:prov/work"),
    ],
)
async def test_scopes(api: Api, method: str, fields: dict[str, str], scope: str) -> None:
    """Each method asks for its own scope."""
    await make(api, "prov/work")
    await api.having(scope)(method, **fields)
    with pytest.raises(InsufficientScopes):
        await api.having(scope[:-1], "queue:get-task:*")(method, **fields)


# -- pending and claimed ---------------------------------------------------------------------------


async def test_pending_in_order_of_insertion(api: Api) -> None:
    """Q-201, T-27: oldest first whatever the priority, full definitions; other queues and states are not
    there; pages."""
    ranks = [Priority.PRIORITY_LOWEST, Priority.PRIORITY_HIGHEST, Priority.PRIORITY_LOW] * 2
    ids = [await api.create(priority=rank) for rank in ranks]
    await api.create("prov/other")
    canceled = await api.create()
    await api("CancelTask", task_id=canceled)
    unscheduled = await api.create(dependencies=[ids[0]])
    listed = (await api("ListPendingTasks", task_queue_id="prov/work")).tasks
    assert [item.task_id for item in listed] == ids
    for item in listed:
        assert item.run_id == 0 and item.task == (await api("GetTask", task_id=item.task_id)).task
        status = (await api("GetTaskStatus", task_id=item.task_id)).status
        assert item.inserted == status.runs[0].scheduled
    pages = await walk(api, "ListPendingTasks", "tasks", 2, task_queue_id="prov/work")
    assert [[item.task_id for item in page] for page in pages] == [ids[:2], ids[2:4], ids[4:]]
    await api("RerunTask", task_id=canceled)
    await api("ScheduleTask", task_id=unscheduled)
    listed = (await api("ListPendingTasks", task_queue_id="prov/work")).tasks
    assert [(item.task_id, item.run_id) for item in listed[-2:]] == [(canceled, 1), (unscheduled, 0)]
    assert not (await api("ListPendingTasks", task_queue_id="prov/none")).tasks


async def test_pending_of_one_creation(api: Api) -> None:
    """Tasks created by one statement have one time, and still a fixed order that pages follow."""
    task = definition(api.services.clock.now(), task_queue_id="prov/work")
    await api("CreateTasks", tasks=[{"task_id": nice(), "task": task} for _ in range(10)])
    whole = (await api("ListPendingTasks", task_queue_id="prov/work")).tasks
    pages = await walk(api, "ListPendingTasks", "tasks", 3, task_queue_id="prov/work")
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert [item for page in pages for item in page] == list(whole)


async def test_pending_past_the_deadline(api: Api, services: Services) -> None:
    """queue.md 3.8: unexpired ones only."""
    late, task_id = await api.create(), await api.create()
    for table in ("tasks", "runs"):
        await services.db.fetch(f"UPDATE {table} SET deadline = now() WHERE task_id = $1::text", (late,))
    listed = (await api("ListPendingTasks", task_queue_id="prov/work")).tasks
    assert [item.task_id for item in listed] == [task_id]


async def test_claimed(api: Api) -> None:
    """Q-201: one entry a task, by the time of the last claim or reclaim."""
    ids = [await api.create() for _ in range(3)]
    for n in range(3):
        await api.claim(worker=f"g/w{n}")
    listed = (await api("ListClaimedTasks", task_queue_id="prov/work")).tasks
    assert [item.task_id for item in listed] == ids
    assert [(item.worker_group, item.worker_id, item.run_id) for item in listed] == [
        ("g", f"w{n}", 0) for n in range(3)
    ]
    for item in listed:
        assert item.task == (await api("GetTask", task_id=item.task_id)).task
        assert item.claimed == (await api("GetTaskStatus", task_id=item.task_id)).status.runs[0].started
    await api("ReclaimTask", task_id=ids[0], run_id=0)
    await api("ReportCompleted", task_id=ids[1], run_id=0)
    listed = (await api("ListClaimedTasks", task_queue_id="prov/work")).tasks
    assert [item.task_id for item in listed] == [ids[2], ids[0]]
    assert listed[1].claimed.ToMilliseconds() >= listed[0].claimed.ToMilliseconds()
    assert not (await api("ListClaimedTasks", task_queue_id="prov/none")).tasks


async def test_claimed_in_pages(api: Api) -> None:
    """Q-201: runs claimed by one statement have one time, and are still paged without loss."""
    ids = {await api.create() for _ in range(7)}
    await api.claim(tasks=7)
    pages = await walk(api, "ListClaimedTasks", "tasks", 3, task_queue_id="prov/work")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert {item.task_id for page in pages for item in page} == ids


async def test_claimed_past_its_end(api: Api, services: Services) -> None:
    """Q-231: listed until it is handled, counted only before."""
    task_id = await api.create()
    await api.claim()
    await services.db.fetch("UPDATE runs SET taken_until = now()")
    listed = (await api("ListClaimedTasks", task_queue_id="prov/work")).tasks
    assert [item.task_id for item in listed] == [task_id]
    assert (await api("GetTaskQueueCounts", task_queue_id="prov/work")).claimed_tasks == 0


@pytest.mark.parametrize(
    "token", ["!!!", "abcdef", "-", "WyJhIiwiYiJd", paging.token("x"), paging.token(1, "x")]
)
async def test_garbage_tokens(api: Api, token: str) -> None:
    """Q-215: lists with key-style tokens start at the beginning on garbage."""
    claimed, pending = await api.create(), await api.create()
    await api.claim()
    for method, task_id in (("ListClaimedTasks", claimed), ("ListPendingTasks", pending)):
        response = await api(method, task_queue_id="prov/work", continuation_token=token)
        assert [item.task_id for item in response.tasks] == [task_id]
