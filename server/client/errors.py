"""What a refused call says, taken out of gRPC's wrappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_NO_STATUS = grpc.StatusCode.UNKNOWN


@dataclass(frozen=True, slots=True)
class Failure:
    """A call's failure.

    `reason` is the ErrorReason without its prefix (`REQUEST_CONFLICT`), empty when the answer did not
    come from the queue itself; `violations` are (field, what it should have been).
    """

    status: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[tuple[str, str]] = ()

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed a little later."""
        return self.status in _PASSING


_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class CallError(Exception):
    """A call failed; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failure_of(error: grpc.RpcError) -> Failure:
    """The failure behind what a gRPC call raised, blocking or asynchronous."""
    call: Any = error
    status = call.code() if hasattr(call, "code") else _NO_STATUS
    message = (call.details() if hasattr(call, "details") else None) or str(error)
    trailing = call.trailing_metadata() if hasattr(call, "trailing_metadata") else None
    packed = next((value for key, value in trailing or () if key == _DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return Failure(status or _NO_STATUS, message)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(packed).details:
        _ = detail.Unpack(info) or detail.Unpack(bad)
    return Failure(
        status or _NO_STATUS,
        message,
        info.reason,
        dict(info.metadata),
        [(violation.field, violation.description) for violation in bad.field_violations],
    )
