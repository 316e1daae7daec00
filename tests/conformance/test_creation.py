"""Creating tasks and reading them (queue.md 1.2, 1.3, 2.2, 3.2, 3.4)."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server.views import stamp
from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import (
    QUEUE,
    at,
    definition,
    metadata,
    new_id,
    new_ids,
    now,
    scopes_to_create,
)
from tests.conformance.door import refused, strange
from tests.conformance.shown import ids, moment, priority_of, runs, state
from tests.plugins.server import Queue

MALFORMED_IDS = ["", "short", "a" * 22, "AAAAAAAAAAAAAAAAAAAAAA/", "-" * 40]


async def test_minimum_and_defaults(queue: Queue) -> None:
    """Q-001 Q-002 Q-003 Q-031 Q-032: the required fields suffice; the rest gets its default."""
    status = await queue.create()
    assert state(status) == "pending"
    assert runs(status) == ["scheduled pending"]
    assert await queue.status(status.task_id) == status
    task = await queue.task(status.task_id)
    assert (task.scheduler_id, task.project_id, task.task_group_id) == ("-", "none", status.task_id)
    assert (task.requires, priority_of(task), task.retries) == (Requires.REQUIRES_ALL_COMPLETED, "lowest", 5)
    assert not (task.dependencies or task.routes or task.scopes or task.tags)
    assert json.loads(task.extra) == {}
    deadline = moment(task.deadline)
    assert moment(task.expires) == deadline.replace(year=deadline.year + 1)
    assert (status.retries_left, status.scheduler_id, status.project_id) == (5, "-", "none")


async def test_everything_given_comes_back(queue: Queue) -> None:
    """Q-031: a definition with all its fields is returned as it was sent."""
    sent = definition(
        provisioner_id="prov",
        worker_type="work",
        scheduler_id="scheduler",
        project_id="a/project.v1",
        task_group_id=new_id(),
        requires=Requires.REQUIRES_ALL_RESOLVED,
        routes=["index.a.b", "with a space"],
        priority="high",
        retries=0,
        expires=at(days=3),
        scopes=["a:b", "a:b", "c:*"],
        payload='{"z":3600,"a":[1.5,null,"ä"]}',
        tags={"kind": "build"},
        extra='{"deep":{"er":{}}}',
    )
    status = (await queue("CreateTask", task_id=new_id(), task=sent)).status
    assert await queue.task(status.task_id) == sent


async def test_dates_are_cut_to_milliseconds(queue: Queue) -> None:
    """Q-004 Q-011 T-13: further digits are dropped, and a repeat with other ones is the same task."""
    task_id = new_id()
    base = now().replace(microsecond=123_000)

    def dates(nanos: int) -> dict[str, Any]:
        return {
            name: Timestamp(seconds=int((base + offset).timestamp()), nanos=123_000_000 + nanos)
            for name, offset in (
                ("created", timedelta()),
                ("deadline", timedelta(hours=1)),
                ("expires", timedelta(hours=2)),
            )
        }

    first = await queue.create(task_id, **dates(456_789))
    assert {first.deadline.nanos, first.expires.nanos, first.runs[0].scheduled.nanos % 1_000_000} == {
        123_000_000,
        0,
    }
    assert await queue.create(task_id, **dates(0)) == first
    assert await queue.create(task_id, **dates(999_999)) == first


async def test_both_ways_to_name_the_queue(queue: Queue) -> None:
    """Q-005 Q-006: either form, the same definition with all three ids."""
    by_id = await queue.create(created=at(), deadline=at(hours=1))
    halves: dict[str, Any] = {"task_queue_id": None, "provisioner_id": "prov", "worker_type": "work"}
    task = await queue.task((await queue.create(**halves)).task_id)
    for named in (task, await queue.task(by_id.task_id), by_id):
        assert (named.provisioner_id, named.worker_type, named.task_queue_id) == ("prov", "work", QUEUE)
    again = definition(**halves, created=(await queue.task(by_id.task_id)).created, deadline=by_id.deadline)
    assert (await queue("CreateTask", task_id=by_id.task_id, task=again)).status == by_id


async def test_consistent_and_contradicting_queue_ids(queue: Queue) -> None:
    """Q-007: three ids that agree are fine, that disagree are refused."""
    await queue.create(provisioner_id="prov", worker_type="work")
    with refused("InputError"):
        await queue.create(provisioner_id="prov", worker_type="other")


async def test_no_queue_id(queue: Queue) -> None:
    """Q-008: no queue, or half of one."""
    halves: list[dict[str, str]] = [{}, {"provisioner_id": "prov"}, {"worker_type": "work"}]
    for half in halves:
        with refused("InputError"):
            await queue.create(task_queue_id=None, **half)


async def test_a_single_half_is_overwritten(queue: Queue) -> None:
    """T-57: one half beside a whole queue id is ignored."""
    status = await queue.create(provisioner_id="another")
    assert status.provisioner_id == "prov"
    status = await queue.create(worker_type="another")
    assert status.worker_type == "work"


async def test_an_identical_repeat(queue: Queue) -> None:
    """Q-009 Q-199: the same status, no further run, no further pending count."""
    task_id, task = new_id(), definition()
    first = (await queue("CreateTask", task_id=task_id, task=task)).status
    assert (await queue("CreateTask", task_id=task_id, task=task)).status == first
    assert await queue.pending_count() == 1
    (claim,) = await queue.claim()
    assert (await queue("CreateTask", task_id=task_id, task=task)).status == claim.status


async def test_object_keys_have_no_order(queue: Queue) -> None:
    """Q-009: JSON objects are compared by value."""
    dates: dict[str, Any] = {"created": at(), "deadline": at(hours=1)}
    first = await queue.create(payload='{"a": 1, "b": {"c": 2, "d": 3}}', extra='{"x":1,"y":2}', **dates)
    again = definition(payload='{"b":{"d":3,"c":2},"a":1}', extra='{"y":2,"x":1}', **dates)
    assert (await queue("CreateTask", task_id=first.task_id, task=again)).status == first


OTHER_VALUES: list[dict[str, Any]] = [
    {"task_queue_id": "prov/other"},
    {"scheduler_id": "other", "task_group_id": new_id()},
    {"project_id": "other"},
    {"task_group_id": new_id()},
    {"requires": Requires.REQUIRES_ALL_RESOLVED},
    {"routes": ["r1"]},
    {"routes": ["r2", "r1"]},
    {"priority": "low"},
    {"retries": 4},
    {"deadline": at(hours=2)},
    {"expires": at(days=3)},
    {"scopes": ["s2", "s1"]},
    {"payload": '{"a":2}'},
    {"metadata": metadata(name="other")},
    {"tags": {"k": "other"}},
    {"extra": '{"a":2}'},
]


async def test_a_repeat_with_another_value(queue: Queue, subtests: pytest.Subtests) -> None:
    """Q-010: any field but the order of object keys makes it another task."""
    base: dict[str, Any] = {
        "created": at(),
        "deadline": at(hours=1),
        "expires": at(days=2),
        "routes": ["r1", "r2"],
        "scopes": ["s1", "s2"],
        "payload": '{"a":1}',
        "tags": {"k": "v"},
        "extra": '{"a":1}',
    }
    first = await queue.create(**base)
    for change in OTHER_VALUES:
        with subtests.test(str(change)), refused("RequestConflict"):
            await queue.create(first.task_id, **{**base, **change})
    assert await queue.status(first.task_id) == first


async def test_a_repeat_with_other_dependencies(queue: Queue) -> None:
    """Q-010: the order of dependencies counts."""
    a, b = [(await queue.create()).task_id for _ in range(2)]
    dates: dict[str, Any] = {"created": at(), "deadline": at(minutes=30)}
    first = await queue.create(dependencies=[a, b], **dates)
    with refused("RequestConflict"):
        await queue.create(first.task_id, dependencies=[b, a], **dates)


async def test_a_repeat_publishes_again(queue: Queue) -> None:
    """Q-012 T-8: task-defined always, task-pending while run 0 is pending."""
    task_id, task = new_id(), definition()
    expected = ["task-defined", "task-pending"]
    for _ in range(2):
        await queue("CreateTask", task_id=task_id, task=task)
        events = await queue.published()
        assert events.exchanges == expected
        assert (events[0].status["state"], events[0].status["runs"]) == ("unscheduled", [])
    await queue.claim()
    await queue.published()
    await queue("CreateTask", task_id=task_id, task=task)
    events = await queue.published()
    assert events.exchanges == ["task-defined"]
    assert events[0].status["state"] == "unscheduled"


async def test_malformed_task_ids(queue: Queue) -> None:
    """Q-013: no slugid."""
    for task_id in MALFORMED_IDS:
        if queue.door.in_paths and not task_id:
            continue  # this path leads nowhere
        with refused("InvalidRequestArguments"):
            await queue("CreateTask", task_id=task_id, task=definition())


DATES: list[tuple[dict[str, dict[str, float]], bool]] = [
    ({"created": {"minutes": -16}}, False),
    ({"created": {"minutes": -14}}, True),
    ({"created": {"minutes": 16}}, False),
    ({"created": {"minutes": 14}}, True),
    ({"created": {"minutes": 10}, "deadline": {"minutes": 9}}, False),
    ({"created": {"minutes": -10}, "deadline": {"seconds": -5}}, False),
    ({"deadline": {"days": 5}}, True),
    ({"deadline": {"days": 5, "minutes": 14}}, True),
    ({"deadline": {"days": 5, "minutes": 16}}, False),
    ({"deadline": {"hours": 2}, "expires": {"hours": 1}}, False),
]


async def test_dates(queue: Queue, subtests: pytest.Subtests) -> None:
    """Q-014 Q-015 Q-016 Q-017: how far created, deadline and expires may lie."""
    for fields, accepted in DATES:
        dates: dict[str, Any] = {name: at(**offset) for name, offset in fields.items()}
        with subtests.test(str(fields)), nullcontext() if accepted else refused("InputError"):
            await queue.create(**dates)


async def test_equal_dates(queue: Queue) -> None:
    """Q-017 T-12: deadline may be created, and expires may be deadline."""
    moment = at(minutes=5)
    await queue.create(created=moment, deadline=moment, expires=moment)


async def test_expiry_is_a_calendar_year_after_the_deadline(queue: Queue) -> None:
    """T-12: 29 February becomes 1 March."""
    leap_day = datetime(2028, 2, 29, 12, tzinfo=now().tzinfo)
    queue.services.clock.learn(leap_day, asked=now().timestamp(), answered=now().timestamp())
    status = await queue.create(created=stamp(leap_day), deadline=stamp(leap_day + timedelta(minutes=1)))
    assert moment(status.expires) == datetime(2029, 3, 1, 12, 1, tzinfo=now().tzinfo)


async def test_no_repeat_after_a_quarter_of_an_hour(queue: Queue) -> None:
    """T-11: by then created is too old."""
    task_id, task = new_id(), definition(created=at(minutes=-14))
    await queue("CreateTask", task_id=task_id, task=task)
    later = now(minutes=2)
    queue.services.clock.learn(later, asked=now().timestamp(), answered=now().timestamp())
    with refused("InputError"):
        await queue("CreateTask", task_id=task_id, task=task)


async def test_scopes_with_two_stars(queue: Queue) -> None:
    """Q-018: refused after the scope check, whoever asks."""
    with refused("InputError"):
        await queue.create(scopes=["abc**"])
    with refused("InsufficientScopes"):
        await queue.having(*scopes_to_create())(
            "CreateTask", task_id=new_id(), task=definition(scopes=["abc**"])
        )


async def test_unknown_properties(queue: Queue) -> None:
    """Q-019: neither the body nor the objects in it take a property of another name."""
    for message in (task := definition()), task.metadata:
        broken = definition()
        strange(broken if message is task else broken.metadata)
        with refused("InputValidationError"):
            await queue("CreateTask", task_id=new_id(), task=broken)


async def test_metadata_is_required(queue: Queue) -> None:
    """Q-020: each of the four."""
    for missing in ("name", "description", "owner", "source"):
        broken = metadata()
        broken.ClearField(missing)
        with refused("InputValidationError", missing):
            await queue.create(metadata=broken)


async def test_metadata_sources(queue: Queue) -> None:
    """Q-020: links and repository addresses, no scripts."""
    for source in ("http://a/b", "https://a/b", "git@host:path", "ssh://git@host/path"):
        await queue.create(metadata=metadata(source=source))
    for source in ("javascript:alert(1)", "ftp://a/b", "", "https://" + "a" * 4090):
        with refused("InputValidationError"):
            await queue.create(metadata=metadata(source=source))


BROKEN_RULES: list[dict[str, Any]] = [
    {"routes": [f"r{n}" for n in range(65)]},
    {"routes": ["a", "a"]},
    {"routes": [""]},
    {"routes": ["a" * 250]},
    {"retries": 50},
    {"retries": -1},
    {"task_queue_id": None, "provisioner_id": "prov", "worker_type": "Work"},
    {"task_queue_id": "prov/Work"},
    {"task_queue_id": "prov/work-"},
    {"task_queue_id": "prov"},
    {"task_queue_id": "a" * 39 + "/work"},
    {"scheduler_id": ""},
    {"scheduler_id": "a" * 39},
    {"project_id": "a b"},
    {"task_group_id": "nothing"},
    {"dependencies": ["nothing"]},
    {"scopes": ["tab\t"]},
    {"tags": {"k": "v" * 4097}},
    {"priority": 99},
    {"created": None},
    {"deadline": None},
    {"payload": None},
    {"metadata": None},
    {"payload": "[]"},
    {"payload": "{"},
    {"extra": "1"},
    {"metadata": metadata(name="n" * 256)},
    {"metadata": metadata(description="d" * 32769)},
]


async def test_broken_rules(queue: Queue, subtests: pytest.Subtests) -> None:
    """Q-021 Q-022 Q-024 Q-026: each rule of the definition."""
    for fields in BROKEN_RULES:
        code = (
            "InputValidationError"
            if fields.get("payload") != "{"
            else "InputValidationError|MalformedPayload"
        )
        with subtests.test(str(fields)[:60]), refused(code):
            await queue.create(**fields)


async def test_extremes_that_are_accepted(queue: Queue) -> None:
    """Q-022 Q-021 T-58: the last values within each limit."""
    status = await queue.create(
        retries=49, routes=[f"{n:02}".ljust(249, ".") for n in range(64)], tags={"k": "v" * 4096}
    )
    assert status.retries_left == 49
    event = (await queue.published()).one("task-pending")
    assert len(event.cc) == 64 and all(cc.startswith("route.") and len(cc) == 255 for cc in event.cc)


async def test_priority_normal_is_lowest(queue: Queue) -> None:
    """Q-025 T-38: accepted by createTask and kept as lowest, refused by the newer calls."""
    dates: dict[str, Any] = {"created": at(), "deadline": at(hours=1)}
    caller = queue.having(*scopes_to_create(priority="lowest"))
    task_id = new_id()
    status = (await caller("CreateTask", task_id=task_id, task=definition(priority="normal", **dates))).status
    assert priority_of(status) == "lowest" == priority_of(await queue.task(task_id))
    assert await queue.create(task_id, priority="lowest", **dates) == status
    for method, name in (("ChangeTaskPriority", "task_id"), ("ChangeTaskGroupPriority", "task_group_id")):
        for number in (8, 0, 99):
            with refused("InputValidationError"):
                await queue(method, **{name: task_id, "new_priority": number})


async def test_each_scope_is_needed(queue: Queue) -> None:
    """Q-027: task scopes, routes, project, scheduler, priority."""
    needed = [
        *scopes_to_create(priority="low", project="p", scheduler="s"),
        "queue:route:a.route",
        "task:scope",
        "other:scope:*",
    ]
    task = definition(
        project_id="p",
        scheduler_id="s",
        priority="low",
        routes=["a.route"],
        scopes=["task:scope", "other:scope:*"],
    )
    for missing in needed:
        caller = queue.having(*(scope for scope in needed if scope != missing))
        with refused("InsufficientScopes", missing):
            await caller("CreateTask", task_id=new_id(), task=task)
    await queue.having(*needed)("CreateTask", task_id=new_id(), task=task)
    with refused("InsufficientScopes"):
        await queue.anonymous("CreateTask", task_id=new_id(), task=task)


async def test_scopes_of_other_priorities(queue: Queue) -> None:
    """Q-028: the scope of a higher priority allows lower ones, not the other way round."""
    medium = definition(priority="medium")
    for held in ("medium", "high", "very-high", "highest"):
        await queue.having(*scopes_to_create(priority=held))("CreateTask", task_id=new_id(), task=medium)
    for held in ("low", "very-low", "lowest", "normal"):
        with refused("InsufficientScopes"):
            await queue.having(*scopes_to_create(priority=held))("CreateTask", task_id=new_id(), task=medium)


async def test_scopes_before_dates(queue: Queue) -> None:
    """Q-029 T-1: createTask checks the schema first, then scopes, then dates."""
    nobody = queue.having("nothing")
    with refused("InsufficientScopes"):
        await nobody("CreateTask", task_id=new_id(), task=definition(deadline=at(days=-1)))
    with refused("InputValidationError"):
        await nobody("CreateTask", task_id=new_id(), task=definition(retries=50))
    with refused("InvalidRequestArguments"):
        await nobody("CreateTask", task_id="malformed", task=definition())
    with refused("InputError"):
        await nobody("CreateTask", task_id=new_id(), task=definition(task_queue_id=None))
    for broken in ({"payload": "[]"}, {"extra": "1"}, {"metadata": metadata(source="git@[")}):
        with refused("InputValidationError"):
            await nobody("CreateTask", task_id=new_id(), task=definition(task_queue_id=None, **broken))


async def test_what_creation_publishes(queue: Queue) -> None:
    """Q-030: task-defined with no runs, then task-pending."""
    status = await queue.create(tags={"a": "b"})
    defined, pending = await queue.published()
    assert (defined.exchange, pending.exchange) == ("task-defined", "task-pending")
    assert (defined.status["state"], defined.status["runs"]) == ("unscheduled", [])
    assert (pending.status["state"], pending.payload["runId"]) == ("pending", 0)
    assert defined.status["taskId"] == status.task_id


async def test_unknown_tasks(queue: Queue) -> None:
    """Q-031 T-1: 404, but only for those who may ask; malformed ids come after scopes."""
    for method in ("GetTask", "GetTaskStatus"):
        with refused("ResourceNotFound"):
            await queue(method, task_id=new_id())
        with refused("InvalidRequestArguments"):
            await queue(method, task_id="malformed")
        for task_id in (new_id(), "malformed"):
            with refused("InsufficientScopes"):
                await queue.having("nothing")(method, task_id=task_id)


async def test_reading_scopes(queue: Queue) -> None:
    """Q-031 Q-032: each method its scope."""
    task_id = (await queue.create()).task_id
    await queue.having(f"queue:get-task:{task_id}")("GetTask", task_id=task_id)
    await queue.having(f"queue:status:{task_id}")("GetTaskStatus", task_id=task_id)
    with refused("InsufficientScopes"):
        await queue.having(f"queue:status:{task_id}")("GetTask", task_id=task_id)


async def test_reading_many(queue: Queue) -> None:
    """Q-033 T-46: unknown ids are left out, repeated ones collapse."""
    known = [(await queue.create()).task_id for _ in range(3)]
    asked = [*known, known[0], new_id(), "no slugid at all"]
    tasks = (await queue("BatchGetTasks", task_ids=asked)).tasks
    assert sorted(ids(tasks)) == sorted(known)
    assert tasks[0].task == await queue.task(tasks[0].task_id)
    statuses = (await queue("BatchGetTaskStatuses", task_ids=asked)).statuses
    assert sorted(ids(statuses)) == sorted(known)
    assert statuses[0].status == await queue.status(statuses[0].task_id)


@pytest.mark.parametrize(
    ("method", "scope"), [("BatchGetTasks", "queue:get-task:"), ("BatchGetTaskStatuses", "queue:status:")]
)
async def test_reading_many_needs_each_scope(queue: Queue, method: str, scope: str) -> None:
    """Q-034 T-46: of every id, known or not; no ids need no scopes."""
    task_id, unknown = (await queue.create()).task_id, new_id()
    await queue.having(scope + task_id, scope + unknown)(method, task_ids=[task_id, unknown])
    with refused("InsufficientScopes", unknown):
        await queue.having(scope + task_id)(method, task_ids=[task_id, unknown])
    empty = await queue.having("nothing")(method)
    assert not empty.ListFields()
    assert not (await queue.anonymous(method)).ListFields()


@pytest.mark.parametrize(
    ("method", "field"), [("BatchGetTasks", "tasks"), ("BatchGetTaskStatuses", "statuses")]
)
async def test_reading_many_by_pages(queue: Queue, method: str, field: str) -> None:
    """Q-035: limit and token."""
    task_ids = [(await queue.create()).task_id for _ in range(5)]
    seen, token, pages = [], "", 0
    while token or not pages:
        page = await queue(method, task_ids=task_ids, limit=2, continuation_token=token)
        seen += ids(getattr(page, field))
        token, pages = page.continuation_token, pages + 1
    assert (sorted(seen), pages) == (sorted(task_ids), 3)
    with refused("InputError"):
        await queue(method, task_ids=task_ids, continuation_token="%%%")
    for limit in (0, -1):
        with refused("InvalidRequestArguments"):
            await queue(method, task_ids=new_ids(1), limit=limit)
