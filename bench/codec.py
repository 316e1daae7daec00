"""The JSON codec beside protobuf's own, in one process: microseconds a message."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import orjson
from google.protobuf import json_format

from bench import http_wire, wire
from server.codec import reading, writing
from server.errors import Violation
from tcqueue.v1.claim_pb2 import Claim
from tcqueue.v1.run_pb2 import ReasonCreated, Run, RunState
from tcqueue.v1.task_pb2 import TaskDefinition, TaskState, TaskStatus

_ROUNDS, _CALLS = 15, 400


def measure() -> dict[str, float]:
    """Medians by name; `*_ratio` is how many times json_format's time ours goes into."""
    body = http_wire.definition("bench/queue")
    # json_format has no free JSON: to it, payload and extra are texts, which spares it their parsing.
    fields = orjson.loads(body)
    texts = {**fields, "payload": orjson.dumps(fields["payload"]).decode(), "extra": "{}"}
    theirs = orjson.dumps({**texts, "metadata": fields["metadata"]}).decode()
    claim = _claim()

    def read_ours() -> None:
        found: list[Violation] = []
        reading.fill(TaskDefinition(), reading.parse(body), body, found)
        if found:
            raise RuntimeError(f"the definition was refused: {found}")

    return {
        **_pair("read_definition", read_ours, lambda: json_format.Parse(theirs, TaskDefinition())),
        **_pair(
            "write_claim",
            lambda: writing.to_bytes(writing.to_value(claim), indent=True),
            lambda: json_format.MessageToJson(claim),
        ),
    }


def _pair(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, float]:
    """Both in turn, so that whatever else the machine does meets both."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(_ROUNDS):
        for who, call in (("ours", ours), ("theirs", theirs)):
            begin = time.perf_counter()
            for _ in range(_CALLS):
                call()
            times[who].append((time.perf_counter() - begin) / _CALLS * 1e6)
    mine, other = statistics.median(times["ours"]), statistics.median(times["theirs"])
    return {f"codec_{name}_us": mine, f"json_format_{name}_us": other, f"codec_{name}_ratio": other / mine}


def _claim() -> Claim:
    """A claim as claimWork answers it."""
    task = TaskDefinition.FromString(wire.definition("bench/queue", wire.slugid()))
    task.expires.CopyFrom(task.deadline)
    run = Run(
        run_id=0,
        state=RunState.RUN_STATE_RUNNING,
        reason_created=ReasonCreated.REASON_CREATED_SCHEDULED,
        worker_group="bench",
        worker_id="w1",
        taken_until=task.deadline,
        scheduled=task.created,
        started=task.created,
    )
    status = TaskStatus(
        task_id=task.task_group_id,
        provisioner_id="bench",
        worker_type="queue",
        task_queue_id="bench/queue",
        scheduler_id="bench",
        project_id="none",
        task_group_id=task.task_group_id,
        deadline=task.deadline,
        expires=task.expires,
        retries_left=5,
        state=TaskState.TASK_STATE_RUNNING,
        runs=[run],
    )
    claim = Claim(status=status, run_id=0, worker_group="bench", worker_id="w1", task=task)
    claim.taken_until.CopyFrom(task.deadline)
    claim.credentials.client_id = "task-client/" + "x" * 60
    claim.credentials.access_token = "x" * 43
    claim.credentials.certificate = '{"version":1,"scopes":["' + "x" * 300 + '"]}'
    return claim
