"""Jobs as JSON of the job queue of 2014, which is nothing like the rest (jobqueue.md 2.2)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from tcqueue.v1.job_pb2 import Job, JobState

_STATES = {number: name.removeprefix("JOB_STATE_") for name, number in JobState.items()}


def to_value(job: Job) -> dict[str, Any]:
    """The eleven members, each there whether it is set or not."""
    return {
        "job_id": job.job_id,
        "job_object": job.job_object,
        "state": _STATES[job.state],
        "priority": job.priority,
        "max_pending_seconds": job.max_pending_seconds,
        "max_runtime_seconds": job.max_runtime_seconds,
        "entered_queue_time": _local(job.entered_queue_time),
        "started_running_time": _local(job.started_running_time)
        if job.HasField("started_running_time")
        else None,
        "finished_time": _local(job.finished_time) if job.HasField("finished_time") else None,
        "worker_id": _worker(job.worker_id) if job.HasField("worker_id") else None,
        "job_results": job.job_results if job.HasField("job_results") else None,
    }


def to_bytes(value: object) -> bytes:
    """JSON of such values."""
    return orjson.dumps(value)


def _local(stamp: Timestamp) -> str:
    """An instant as Python writes one without a zone, in this machine's."""
    moment = datetime.fromtimestamp(stamp.seconds).replace(microsecond=stamp.nanos // 1000)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _worker(name: str) -> int | str:
    """Workers had numbers; those of other interfaces have names."""
    return int(name) if name.isdecimal() and name.isascii() and len(name) < 10 else name
