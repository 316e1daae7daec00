"""New jobs, and those that are none (jobqueue.md 2.1)."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.jobqueue.old_client import EXAMPLE, OldClient
from tests.plugins.server import Queue

MINIMAL = {"version": "0.1.0"}


@pytest.mark.elder("jobqueue.createJob")
async def test_a_minimal_job(old: OldClient) -> None:
    """J-001: the reply is the id, a UUID in its usual form."""
    answer = await old("POST", "/job/new", MINIMAL)
    assert answer.status == 200
    assert list(answer.json()) == ["job_id"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.json()["job_id"])


async def test_ten_jobs(old: OldClient) -> None:
    """J-002: each has an id of its own, and all are listed."""
    ids = [await old.new() for _ in range(10)]
    assert len(set(ids)) == 10
    assert await old.jobs() == set(ids)


@pytest.mark.elder("jobqueue.getJob")
async def test_a_new_job_is_pending(old: OldClient) -> None:
    """J-003."""
    job_id = await old.new()
    job = await old.job(job_id)
    assert (job["job_id"], job["state"]) == (job_id, "PENDING")


@pytest.mark.elder("jobqueue.listJobs")
async def test_a_new_job_in_the_lists(old: OldClient) -> None:
    """J-004: among the pending, not among the running."""
    job_id = await old.new()
    assert await old.jobs("?state=PENDING") == {job_id}
    assert await old.jobs("?state=RUNNING") == set()


@pytest.mark.elder("jobqueue.createJob")
async def test_the_full_example(old: OldClient, modern: Queue) -> None:
    """J-006: members that mean nothing here are kept."""
    job = await old.job(await old.new(EXAMPLE))
    assert (job["priority"], job["max_pending_seconds"], job["max_runtime_seconds"]) == (3, 1200, 600)
    rows = await modern.sql("select results_server from jobs")
    assert rows == [("http://results.example.com/",)]


async def test_the_limits(old: OldClient) -> None:
    """J-007: the largest values are allowed, and the smallest."""
    largest = {"priority": 99, "max_pending_seconds": 604800, "max_runtime_seconds": 86400}
    for numbers in (largest, dict.fromkeys(largest, 0)):
        job = await old.job(await old.new({**MINIMAL, **numbers}))
        assert {name: job[name] for name in numbers} == numbers


async def test_defaults(old: OldClient) -> None:
    """2.1: what a job lacks."""
    job = await old.job(await old.new())
    assert (job["priority"], job["max_pending_seconds"], job["max_runtime_seconds"]) == (0, 86400, 7200)


async def test_numbers_as_text(old: OldClient) -> None:
    """J-008: they become numbers in the job, and stay texts in what was submitted."""
    texts = {"priority": "42", "max_pending_seconds": "60", "max_runtime_seconds": "120"}
    job = await old.job(await old.new({**MINIMAL, **texts}))
    assert (job["priority"], job["max_pending_seconds"], job["max_runtime_seconds"]) == (42, 60, 120)
    assert json.loads(job["job_object"]) == {**MINIMAL, **texts}


async def test_the_submitted_object(old: OldClient) -> None:
    """J-009: text that says what was sent, types and digits included."""
    text = '{"version": "0.1.0", "n": 12345678901234567890123, "x": 1.10, "t": "\\u00e4", "z": [null, true]}'
    job = await old.job(await old.new(text))
    assert isinstance(job["job_object"], str)
    assert json.loads(job["job_object"]) == json.loads(text)
    assert "12345678901234567890123" in job["job_object"] and "1.10" in job["job_object"]
    assert json.loads((await old.job(await old.new(EXAMPLE)))["job_object"]) == EXAMPLE


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"]
)
async def test_the_content_type_does_not_matter(old: OldClient, content_type: str | None) -> None:
    """J-010."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await old("POST", "/job/new", MINIMAL, headers)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("priority", 9999),
        ("priority", 100),
        ("priority", -1),
        ("priority", "100"),
        ("max_pending_seconds", 9999999),
        ("max_pending_seconds", -1),
        ("max_runtime_seconds", 9999999),
        ("max_runtime_seconds", 86401),
    ],
)
@pytest.mark.elder("jobqueue.createJob")
async def test_numbers_out_of_range(old: OldClient, member: str, value: object) -> None:
    """J-011, J-012, J-013, J-015: refused with a reason that names value and member."""
    answer = await old("POST", "/job/new", {**MINIMAL, member: value})
    assert answer.status == 405
    assert answer.json() == {"reason": f"invalid value {value} for {member}"}
    assert await old.jobs() == set()


@pytest.mark.parametrize("value", ["hack", "0123456789", "", 12345678901, None, ["a long enough list"]])
async def test_a_results_server_that_is_none(old: OldClient, value: object) -> None:
    """J-014, J-015: text of more than ten characters, or nothing."""
    answer = await old("POST", "/job/new", {**MINIMAL, "results_server": value})
    assert answer.status == 405
    assert answer.json() == {"reason": f"invalid results_server {value}"}
    assert (await old("POST", "/job/new", {**MINIMAL, "results_server": "01234567890"})).status == 200


async def test_the_first_fault_is_told(old: OldClient) -> None:
    """2.1: in the order of the table, whatever the order in the body."""
    body = {"results_server": "hack", "max_runtime_seconds": -1, "max_pending_seconds": -1, "priority": -1}
    for member in ("priority", "max_pending_seconds", "max_runtime_seconds"):
        answer = await old("POST", "/job/new", body)
        assert answer.json()["reason"] == f"invalid value -1 for {member}"
        body[member] = 1
    assert (await old("POST", "/job/new", body)).json()["reason"] == "invalid results_server hack"


@pytest.mark.parametrize(
    "body",
    ["hack", "", "{}", "[]", "null", "0", "false", '""', "{", b"\xff\xfe", '{"a": NaN}', b'{"a": "\xff"}'],
)
@pytest.mark.elder("jobqueue.createJob")
async def test_bodies_that_say_nothing(old: OldClient, body: str | bytes) -> None:
    """J-015, J-016: refused with a reason."""
    answer = await old("POST", "/job/new", body)
    assert answer.status == 405
    assert answer.reason == "METHOD NOT ALLOWED"
    assert list(answer.json()) == ["reason"] and answer.json()["reason"]


@pytest.mark.parametrize("value", ["x", "", None, [], {}, "1e2", [1], True, False])
async def test_numbers_that_are_none(old: OldClient, value: object) -> None:
    """J-017: refused, which is no failure of the server."""
    answer = await old("POST", "/job/new", {**MINIMAL, "priority": value})
    assert answer.status == 405
    assert answer.json()["reason"] == f"invalid value {value} for priority"


@pytest.mark.parametrize("body", ["[1]", '["a"]', '"hack"', "1", "true", '[{"version": "0.1.0"}]'])
async def test_a_body_that_is_no_object(old: OldClient, body: str) -> None:
    """J-017: the same for arrays and bare values."""
    answer = await old("POST", "/job/new", body)
    assert answer.status == 405 and answer.json()["reason"]


async def test_values_nobody_meant(old: OldClient) -> None:
    """2.1: what no text can hold is refused as well, and shown as far as it can be."""
    for body in (
        '{"priority": "\\ud800"}',
        '{"x": "\\ud800"}',
        '{"results_server": "http://\\u0000.example.com"}',
        '{"priority": ' + "9" * 5000 + "}",
        '{"priority": "' + "9" * 5000 + '"}',
        '{"x": ' + "[" * 100000 + "]" * 100000 + "}",
    ):
        answer = await old("POST", "/job/new", body)
        assert answer.status == 405 and 0 < len(answer.json()["reason"]) < 400
    assert await old.jobs() == set()


async def test_a_body_beyond_all_measure(old: OldClient) -> None:
    """1: too large is a reason, too, and it arrives."""
    answer = await old("POST", "/job/new", '{"x": "' + "x" * (11 << 20) + '"}')
    assert answer.status == 405 and "larger" in answer.json()["reason"]


async def test_the_task_of_a_job(old: OldClient, modern: Queue) -> None:
    """6: what a modern client sees of a job."""
    job_id = await old.new(EXAMPLE)
    task_id = await task_of(modern, job_id)
    task, status = await modern.task(task_id), await modern.status(task_id)
    assert json.loads(task.payload) == {"job": EXAMPLE}
    assert "12345678901234567890" in task.payload
    assert task.task_queue_id == "jobqueue/default"
    assert (task.scheduler_id, task.task_group_id, task.retries) == ("jobqueue", task_id, 0)
    assert task.metadata.name == "an example"
    assert task.metadata.owner == "somebody@example.com"
    assert task.deadline.ToDatetime() - task.created.ToDatetime() == timedelta(seconds=600 + 1200)
    assert status.priority == 1 and len(status.runs) == 1
    assert [
        t.task_id for t in (await modern("ListPendingTasks", task_queue_id="jobqueue/default")).tasks
    ] == [task_id]
    assert (await modern.published()).exchanges == ["task-defined", "task-pending"]


@pytest.mark.settings(
    job_queue_task_queue_id="other/place",
    job_queue_owner="owner@example.com",
    job_queue_source="https://example.com/jobs",
    max_task_deadline_days=0.5,
)
async def test_what_a_job_lacks_is_configured(old: OldClient, modern: Queue) -> None:
    """6: the queue, the owner and the source; and no task lives longer than tasks may."""
    job_id = await old.new()
    task = await modern.task(await task_of(modern, job_id))
    assert task.task_queue_id == "other/place"
    assert (task.metadata.name, task.metadata.owner) == (f"job {job_id}", "owner@example.com")
    assert task.metadata.source == "https://example.com/jobs"
    assert task.deadline.ToDatetime() - task.created.ToDatetime() == timedelta(hours=12)
    assert await old.jobs() == {job_id}


async def test_labels_that_are_no_labels(old: OldClient, modern: Queue) -> None:
    """6: tags of another kind are left alone."""
    tags: list[Any] = [None, [], {"name": 1, "requester": None}, {"name": "  ", "requester": "x" * 999}]
    for value in tags:
        job_id = await old.new({"tags": value})
        task = await modern.task(await task_of(modern, job_id))
        assert task.metadata.name == f"job {job_id}"
        assert task.metadata.source.endswith(f"/0.1.0/job/{job_id}")
        assert 0 < len(task.metadata.owner) <= 255


async def test_when_it_was_submitted(old: OldClient) -> None:
    """1: local time, without a zone."""
    job = await old.job(await old.new())
    entered = datetime.strptime(job["entered_queue_time"], "%Y-%m-%d %H:%M:%S.%f")
    assert abs(datetime.now() - entered) < timedelta(seconds=30)


async def task_of(modern: Queue, job_id: str) -> str:
    """The task that a job is, as gRPC tells it."""
    return str((await modern("GetJob", job_id=job_id)).job.task_id)
