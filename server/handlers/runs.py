"""Resolving runs by unary calls: reportCompleted, reportFailed, reportException (queue.md 3.6)."""

from __future__ import annotations

from server.call import Call
from server.transitions.facts import TaskFacts
from server.transitions.resolving import Resolve
from server.views import REASON_WORDS, status_message
from tcqueue.v1.claim_pb2 import (
    ReportCompletedRequest,
    ReportCompletedResponse,
    ReportExceptionRequest,
    ReportExceptionResponse,
    ReportFailedRequest,
    ReportFailedResponse,
)
from tcqueue.v1.task_pb2 import TaskStatus


async def report_completed(call: Call, request: ReportCompletedRequest) -> ReportCompletedResponse:
    """Resolves a run as completed; as failed if a very old worker says `success: false`."""
    state = "failed" if request.HasField("success") and not request.success else "completed"
    return ReportCompletedResponse(status=await _report(call, request.task_id, request.run_id, state, state))


async def report_failed(call: Call, request: ReportFailedRequest) -> ReportFailedResponse:
    """Resolves a run as failed."""
    return ReportFailedResponse(
        status=await _report(call, request.task_id, request.run_id, "failed", "failed")
    )


async def report_exception(call: Call, request: ReportExceptionRequest) -> ReportExceptionResponse:
    """Resolves a run as an exception, with a retry where the reason allows one."""
    return ReportExceptionResponse(
        status=await _report(call, request.task_id, request.run_id, "exception", REASON_WORDS[request.reason])
    )


async def _report(call: Call, task_id: str, run_id: int, state: str, reason: str) -> TaskStatus:
    facts: TaskFacts = await call.services.changes.submit(Resolve(task_id, run_id, state, reason))
    return status_message(facts)
