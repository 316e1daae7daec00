"""Prometheus metrics of a process; the HTTP door shows them at /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)

CALLS = Counter("tcqueue_calls", "Calls ended, by method and result code", ["method", "code"])
SECONDS = Histogram("tcqueue_call_seconds", "Time a call took", ["method"], buckets=_BUCKETS)
OPEN = Gauge("tcqueue_open_calls", "Calls under way, streams included", ["method"])
# These three have the names and labels of the published reference (queue.md 6.2).
COMPLETED = Counter("queue_completed_tasks", "Runs completed", ["provisionerId", "workerType"])
FAILED = Counter("queue_failed_tasks", "Runs failed", ["provisionerId", "workerType", "reasonResolved"])
EXCEPTION = Counter(
    "queue_exception_tasks",
    "Runs resolved as an exception, retried or not",
    ["provisionerId", "workerType", "reasonResolved"],
)
_QUEUE = ["provisionerId", "workerType"]
# So have these, which loops/queue_metrics.py sets.
PENDING_TASKS = Gauge("queue_pending_tasks", "Pending tasks", _QUEUE)
CLAIMED_TASKS = Gauge("queue_claimed_tasks", "Claimed tasks", _QUEUE)
WORKERS = Gauge("queue_workers_total", "Workers", _QUEUE)
QUARANTINED_WORKERS = Gauge("queue_quarantined_workers", "Quarantined workers", _QUEUE)
RUNNING_WORKERS = Gauge("queue_running_workers", "Workers with a task, as many as there are claims", _QUEUE)
IDLE_WORKERS = Gauge("queue_idle_workers", "Workers neither quarantined nor running", _QUEUE)
QUEUE_GAUGES = (
    PENDING_TASKS,
    CLAIMED_TASKS,
    WORKERS,
    QUARANTINED_WORKERS,
    RUNNING_WORKERS,
    IDLE_WORKERS,
)
STREAMS = Gauge("tcqueue_claim_streams", "Open ClaimWork streams")
CLAIMED = Counter("tcqueue_claimed_runs", "Runs handed to workers", ["task_queue"])
LOOP_ROUNDS = Counter("tcqueue_loop_rounds", "Rounds of background loops", ["loop", "result"])
LOOP_HANDLED = Counter("tcqueue_loop_handled", "Things background loops handled", ["loop"])
DELETED_BLOBS = Counter("tcqueue_deleted_blobs", "Artifacts and objects whose bytes were deleted")
RELAY_LEADS = Gauge("tcqueue_relay_leads", "Whether this process relays events to the broker")
RELAY_PUBLISHED = Counter("tcqueue_relay_published", "Events sent to the broker, repeats included")
RELAY_ASIDE = Counter("tcqueue_relay_set_aside", "Events that the broker would not have")
RELAY_BACKLOG = Gauge("tcqueue_relay_backlog_rows", "Rows of the event log that are not relayed yet, at most")
RELAY_LAG = Gauge("tcqueue_relay_lag_seconds", "Age of the oldest event that is not relayed yet")
EVENT_LOG_BYTES = Gauge("tcqueue_event_log_bytes", "Size of the event log, about")
REMOVED_WORKERS = Counter("tcqueue_removed_workers", "Workers reported gone that still held runs")

_bound: dict[str, tuple[Histogram, Gauge]] = {}
_codes: dict[tuple[str, str], Counter] = {}
_ends: dict[tuple[str, str, str], Counter] = {}


def started(method: str) -> Callable[[str], None]:
    """Notes the start of a call; the returned function notes its end with a result code."""
    pair = _bound.get(method)
    if pair is None:
        pair = _bound[method] = (SECONDS.labels(method), OPEN.labels(method))
    seconds, under_way = pair
    begin = time.perf_counter()
    under_way.inc()

    def done(code: str) -> None:
        under_way.dec()
        seconds.observe(time.perf_counter() - begin)
        counter = _codes.get((method, code))
        if counter is None:
            counter = _codes[method, code] = CALLS.labels(method, code)
        counter.inc()

    return done


def resolved(task_queue_id: str, state: str, reason: str, count: int) -> None:
    """Counts runs that were resolved."""
    counter = _ends.get((task_queue_id, state, reason))
    if counter is None:
        provisioner_id, _, worker_type = task_queue_id.partition("/")
        if state == "completed":
            counter = COMPLETED.labels(provisioner_id, worker_type)
        else:
            counter = (FAILED if state == "failed" else EXCEPTION).labels(provisioner_id, worker_type, reason)
        _ends[task_queue_id, state, reason] = counter
    counter.inc(count)
