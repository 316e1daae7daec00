"""Claiming, completing, canceling and looking at jobs (jobqueue.md 2.2-2.6, 3)."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.conformance.building import at
from tests.jobqueue.conftest import Served
from tests.jobqueue.old_client import EXAMPLE, OldClient
from tests.jobqueue.test_creating import task_of
from tests.plugins.server import Queue

MEMBERS = [
    "job_id",
    "job_object",
    "state",
    "priority",
    "max_pending_seconds",
    "max_runtime_seconds",
    "entered_queue_time",
    "started_running_time",
    "finished_time",
    "worker_id",
    "job_results",
]


@pytest.mark.elder("jobqueue.claimJob")
async def test_claim(old: OldClient) -> None:
    """J-018, J-022: no body is needed; the job is running then."""
    job_id = await old.new()
    answer = await old("POST", f"/job/{job_id}/claim")
    assert (answer.status, answer.json()) == (200, {})
    job = await old.job(job_id)
    assert (job["state"], job["worker_id"]) == ("RUNNING", 0)
    assert job["started_running_time"] >= job["entered_queue_time"] and job["finished_time"] is None


async def test_any_body_of_a_claim_is_ignored(old: OldClient) -> None:
    """J-022."""
    for body in ("", "hack", {"worker_id": 7}, "[]", "x" * 100_000):
        assert await old.change(await old.new(), "claim", body) == 200


async def test_a_claimed_job_in_the_lists(old: OldClient) -> None:
    """J-019: no longer pending, but running, and not finished."""
    job_id = await old.running()
    assert await old.jobs("?state=PENDING") == set()
    assert await old.jobs("?state=RUNNING") == await old.jobs() == {job_id}


@pytest.mark.elder("jobqueue.claimJob")
async def test_a_second_claim(old: OldClient) -> None:
    """J-020: refused in every state but pending."""
    job_id = await old.running()
    answer = await old("POST", f"/job/{job_id}/claim")
    assert (answer.status, answer.reason, answer.body) == (403, "FORBIDDEN", b"Not found")
    assert answer.headers["content-type"] == "text/html"
    assert await old.change(job_id, "complete") == 200
    assert await old.change(job_id, "claim") == 403


@pytest.mark.parametrize("what", ["claim", "cancel", "complete"])
@pytest.mark.elder("jobqueue.claimJob", "jobqueue.completeJob", "jobqueue.cancelJob")
async def test_many_at_once(server: Served, old: OldClient, modern: Queue, what: str) -> None:
    """J-021: of many claims one wins, and so it is with the other changes."""
    clients = [OldClient("127.0.0.1", server.port) for _ in range(12)]
    for _ in range(4):
        job_id = await (old.running() if what == "complete" else old.new())
        await modern.published()
        statuses = await asyncio.gather(*(client.change(job_id, what) for client in clients))
        assert sorted(statuses) == [200] + [403] * 11
        exchange = {"claim": "task-running", "cancel": "task-exception", "complete": "task-completed"}[what]
        assert (await modern.published()).exchanges.count(exchange) == 1
    for client in clients:
        client.close()


@pytest.mark.elder("jobqueue.completeJob")
async def test_complete(old: OldClient) -> None:
    """J-023: a running job is finished then, and off the lists."""
    job_id = await old.running()
    answer = await old("POST", f"/job/{job_id}/complete", {"task_result": {"exit_status": 0}})
    assert (answer.status, answer.json()) == (200, {})
    job = await old.job(job_id)
    assert (job["state"], job["worker_id"]) == ("FINISHED", 0)
    assert job["finished_time"] >= job["started_running_time"]
    assert await old.jobs() == set()


@pytest.mark.elder("jobqueue.completeJob")
async def test_finish(old: OldClient) -> None:
    """J-024: the other name of the same."""
    job_id = await old.running()
    assert await old.change(job_id, "finish", {"a": 1}) == 200
    job = await old.job(job_id)
    assert (job["state"], job["job_results"]) == ("FINISHED", '{"a": 1}')
    assert await old.change(job_id, "finish") == 403
    assert await old.change(await old.new(), "finish") == 403


async def test_complete_twice(old: OldClient) -> None:
    """J-025: the second has no effect."""
    job_id = await old.running()
    assert await old.change(job_id, "complete", {"n": 1}) == 200
    assert await old.change(job_id, "complete", {"n": 2}) == 403
    assert json.loads((await old.job(job_id))["job_results"]) == {"n": 1}


async def test_complete_while_pending(old: OldClient) -> None:
    """J-026."""
    job_id = await old.new()
    assert await old.change(job_id, "complete") == 403
    job = await old.job(job_id)
    assert (job["state"], job["job_results"]) == ("PENDING", None)


@pytest.mark.elder("jobqueue.completeJob")
async def test_results(old: OldClient) -> None:
    """J-027: they come back as text, digit for digit; what is no JSON, and what is empty, as `null`."""
    full = {
        "task_result": {"exit_status": 0, "exit_status_string": "ok"},
        "infra_result": {},
        "extra_info": {"n": 1.50},
        "times": {"started": 1},
    }
    for body, results in (
        (full, json.dumps(full)),
        ('{"x": 12345678901234567890.10, "s": "\\ud800"}', '{"x": 12345678901234567890.10, "s": "\\ud800"}'),
        ("[1, 2]", "[1, 2]"),
        ('"text"', '"text"'),
        *((body, "null") for body in ("hack", "", None, "{}", "[]", "0", "null", b"\xff", "{")),
    ):
        job_id = await old.running()
        assert await old.change(job_id, "complete", body) == 200
        assert (await old.job(job_id))["job_results"] == results


@pytest.mark.elder("jobqueue.cancelJob")
async def test_cancel_pending(old: OldClient) -> None:
    """J-028: finished, with results that say nothing."""
    job_id = await old.new()
    answer = await old("POST", f"/job/{job_id}/cancel")
    assert (answer.status, answer.json()) == (200, {})
    job = await old.job(job_id)
    assert (job["state"], job["job_results"], job["worker_id"]) == ("FINISHED", "null", None)
    assert await old.jobs() == set()


@pytest.mark.elder("jobqueue.cancelJob")
async def test_cancel_running(old: OldClient) -> None:
    """J-029."""
    job_id = await old.running()
    assert await old.change(job_id, "cancel") == 200
    job = await old.job(job_id)
    assert (job["state"], job["job_results"]) == ("FINISHED", "null")


async def test_a_second_cancel(old: OldClient) -> None:
    """J-030: also of a job that was completed, whose results stay."""
    job_id = await old.new()
    assert [await old.change(job_id, "cancel") for _ in range(2)] == [200, 403]
    done = await old.running()
    assert await old.change(done, "complete", "[1]") == 200
    assert await old.change(done, "cancel") == 403
    assert (await old.job(done))["job_results"] == "[1]"


async def test_complete_after_cancel(old: OldClient) -> None:
    """J-031: this is how a worker learns of it."""
    job_id = await old.running()
    assert await old.change(job_id, "cancel") == 200
    assert await old.change(job_id, "complete", "[1]") == 403
    assert await old.change(job_id, "finish", "[1]") == 403
    assert (await old.job(job_id))["job_results"] == "null"


async def test_finished_jobs_can_be_read(old: OldClient) -> None:
    """J-032: by their id, with all they had."""
    job_id = await old.running(EXAMPLE)
    await old.change(job_id, "complete")
    job = await old.job(job_id)
    assert job["state"] == "FINISHED"
    assert json.loads(job["job_object"]) == EXAMPLE


@pytest.mark.elder("jobqueue.getJob")
async def test_the_members_of_a_job(old: OldClient) -> None:
    """J-039: eleven, null when unset; alike in the list."""
    job_id = await old.new()
    job = await old.job(job_id)
    assert list(job) == MEMBERS
    unset = ("started_running_time", "finished_time", "worker_id", "job_results")
    assert [job[name] for name in unset] == [None] * 4
    assert (await old("GET", "/jobs")).json() == [job]
    await old.change(job_id, "claim")
    await old.change(job_id, "complete", "[1]")
    job = await old.job(job_id)
    assert list(job) == MEMBERS and None not in job.values()


# -- together with modern clients


async def test_a_claim_seen_by_a_modern_client(old: OldClient, modern: Queue) -> None:
    """6: a running run of worker jobqueue/0, for as long as the job may run."""
    task_id = await task_of(modern, await old.running({"max_runtime_seconds": 600}))
    (run,) = (await modern.status(task_id)).runs
    assert (run.worker_group, run.worker_id) == ("jobqueue", "0")
    assert run.taken_until.seconds - run.started.seconds == 600
    events = await modern.published()
    assert events.exchanges == ["task-defined", "task-pending", "task-running"]


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        ('{"task_result": {"exit_status": 0}}', "completed"),
        ('{"task_result": {"exit_status": 3}}', "failed"),
        ('{"task_result": {"exit_status": -1.5}}', "failed"),
        ('{"result": {"task_result": {"exit_status": 1}}}', "failed"),
        ('{"task_result": {"exit_status": "1"}}', "completed"),
        ('{"task_result": {"exit_status": true}}', "completed"),
        ('{"task_result": 1}', "completed"),
        ("[1]", "completed"),
        ("", "completed"),
    ],
)
async def test_how_a_task_ends(old: OldClient, modern: Queue, results: str, outcome: str) -> None:
    """6: failed if the results say so, else completed; and its group is resolved with it."""
    job_id = await old.running()
    await modern.published()
    assert await old.change(job_id, "complete", results) == 200
    assert (await modern.published()).exchanges == [f"task-{outcome}", "task-group-resolved"]
    assert (await old.job(job_id))["state"] == "FINISHED"


async def test_a_job_finished_by_a_modern_worker(old: OldClient, modern: Queue) -> None:
    """6: it may claim and resolve what was submitted here; the old client sees it, and may not meddle."""
    job_id = await old.new()
    (claim,) = await modern.claim(queue_id="jobqueue/default", worker="modern/w1")
    job = await old.job(job_id)
    assert (job["state"], job["worker_id"]) == ("RUNNING", "w1")
    assert await old.jobs("?state=RUNNING") == {job_id}
    assert await old.change(job_id, "claim") == 403
    assert await old.change(job_id, "complete", "[1]") == 403
    await modern.resolve(claim.status.task_id, "completed")
    job = await old.job(job_id)
    assert (job["state"], job["job_results"], job["worker_id"]) == ("FINISHED", None, "w1")


async def test_a_job_canceled_by_a_modern_client(old: OldClient, modern: Queue) -> None:
    """6: seen at once, whoever did it."""
    job_id = await old.running()
    await modern("CancelTask", task_id=await task_of(modern, job_id))
    assert (await old.job(job_id))["state"] == "FINISHED"
    assert await old.change(job_id, "complete") == 403
    assert await old.change(job_id, "cancel") == 403


async def test_a_job_run_again_by_a_modern_client(old: OldClient, modern: Queue) -> None:
    """6: pending again, without the results of the run before."""
    job_id = await old.running()
    await old.change(job_id, "complete", "[1]")
    await modern("RerunTask", task_id=await task_of(modern, job_id))
    job = await old.job(job_id)
    assert (job["state"], job["job_results"]) == ("PENDING", None)
    assert await old.jobs("?state=PENDING") == {job_id}
    assert await old.change(job_id, "claim") == 200
    assert await old.change(job_id, "complete", "[2]") == 200
    assert (await old.job(job_id))["job_results"] == "[2]"


async def test_a_modern_task_is_no_job(old: OldClient, modern: Queue) -> None:
    """6: not even in the same queue."""
    status = await modern.create(task_queue_id="jobqueue/default")
    await modern.running(task_queue_id="jobqueue/other")
    assert await old.jobs() == set()
    (row,) = await modern.sql(
        "select encode(decode(translate($1, '-_', '+/') || '==', 'base64'), 'hex')", status.task_id
    )
    digits = row[0]
    job_id = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    assert (await old("GET", f"/job/{job_id}")).status == 404
    for what in ("claim", "cancel", "complete"):
        assert await old.change(job_id, what) == 404


async def test_a_claim_that_runs_out(old: OldClient, modern: Queue) -> None:
    """6: the job is finished then, and never pending again."""
    job_id = await old.running({"max_runtime_seconds": 60})
    await modern.pass_time(seconds=61)
    assert await modern.expire_claims() == 1
    job = await old.job(job_id)
    assert (job["state"], job["job_results"]) == ("FINISHED", None)
    assert await old.change(job_id, "complete") == 403


async def test_a_job_that_nobody_claims(old: OldClient, modern: Queue) -> None:
    """6: finished some time after its deadline, and out of reach from then on."""
    job_id = await old.new({"max_pending_seconds": 60, "max_runtime_seconds": 60})
    await modern.pass_time(seconds=121)
    assert await old.change(job_id, "claim") == 403
    assert await old.change(job_id, "cancel") == 403
    await modern.pass_time(seconds=61)
    assert await modern.enforce_deadlines() == 1
    assert (await old.job(job_id))["state"] == "FINISHED"


async def test_no_time_to_run_is_the_default_time(old: OldClient, modern: Queue) -> None:
    """2.1: 0 is allowed, and such a job can be run."""
    job_id = await old.running({"max_pending_seconds": 0, "max_runtime_seconds": 0})
    task_id = await task_of(modern, job_id)
    (run,) = (await modern.status(task_id)).runs
    assert run.taken_until.seconds - run.started.seconds in range(7198, 7202)
    assert (await old.job(job_id))["max_runtime_seconds"] == 0


async def test_a_quarantined_worker(old: OldClient, modern: Queue) -> None:
    """6: as for any worker that claims by name."""
    job_id = await old.new()
    worker = {
        "provisioner_id": "jobqueue",
        "worker_type": "default",
        "worker_group": "jobqueue",
        "worker_id": "0",
    }
    await modern("DeclareWorker", **worker)
    await modern("QuarantineWorker", **worker, quarantine_until=at(days=1))
    assert await old.change(job_id, "claim") == 403
    assert (await old.job(job_id))["state"] == "PENDING"


async def test_jobs_expire(old: OldClient, modern: Queue) -> None:
    """6: with their tasks, a year after their deadline."""
    gone = await old.new()
    await modern.pass_time(days=367)
    kept = await old.new()
    await modern.expire()
    assert (await old("GET", f"/job/{gone}")).status == 404
    assert (await old.job(kept))["state"] == "PENDING"
    assert await modern.sql("select count(*) from jobs") == [(1,)]
