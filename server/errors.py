"""Everything a call can fail with; handlers raise, only the front doors render.

    QueueError
      BadRequest                  400  INVALID_ARGUMENT
        MalformedPayload            unparsable body
        InvalidRequestArguments     a path or query argument is malformed
        InputValidationError        a message breaks its declared rules
        InputError                  well formed, but makes no sense
          TaskGraphError              nodes of a task graph do
        CursorTooOld                400  OUT_OF_RANGE; the events behind a cursor are deleted
        NoMatchingBackend           400  no store takes objects of this name
      AuthenticationFailed        401  UNAUTHENTICATED
      InsufficientScopes          403  PERMISSION_DENIED
      ResourceNotFound            404  NOT_FOUND
      RequestConflict             409  FAILED_PRECONDITION
        AlreadyExists             409  ALREADY_EXISTS
      ResourceExpired             410  NOT_FOUND
      InputTooLarge               413  RESOURCE_EXHAUSTED
      ErrorArtifact               424  FAILED_PRECONDITION
        LegacyErrorArtifact       403  FAILED_PRECONDITION; for clients of 2014
      NoMatchingMethod            406  FAILED_PRECONDITION
      InternalServerError         500  INTERNAL
      NotImplementedYet           501  UNIMPLEMENTED
      Unavailable                 503  UNAVAILABLE
        OutOfSpace                507  RESOURCE_EXHAUSTED

``code`` is the wire name of queue.md 8.2 and, in upper snake case, an `ErrorReason`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: the field's path in the request, and what it should have been."""

    field: str
    description: str


class QueueError(Exception):
    """Base of all errors a caller may see; `message` is safe to show, `details` are short facts."""

    code = "InternalServerError"
    grpc_status = grpc.StatusCode.INTERNAL
    http_status = 500

    def __init__(self, message: str, /, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, str] = details
        self.violations: Sequence[Violation] = ()
        #: Further headers of the answer over HTTP.
        self.headers: Mapping[str, str] = {}
        #: The body of the answer over HTTP, where it is not the one that all errors have.
        self.body: Mapping[str, str] | None = None
        #: Further members of the body that all errors have.
        self.extra: Mapping[str, object] = {}


class BadRequest(QueueError):
    """The request itself is wrong; repeating it unchanged can never succeed."""

    code = "InputError"
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400

    def __init__(self, message: str, /, violations: Sequence[Violation] = (), **details: str) -> None:
        super().__init__(message, **details)
        self.violations = violations


class MalformedPayload(BadRequest):
    """The body cannot be read at all."""

    code = "MalformedPayload"


class InvalidRequestArguments(BadRequest):
    """An argument that a URL would carry (an id, a limit) is malformed."""

    code = "InvalidRequestArguments"


class InputValidationError(BadRequest):
    """The body breaks the rules declared in the proto."""

    code = "InputValidationError"


class InputError(BadRequest):
    """Every field is well formed, but together, or now, they make no sense."""

    code = "InputError"


class TaskGraphError(InputError):
    """Nodes of a task graph make no sense. `faults` are (index in the request, field, text, facts); over HTTP
    they are the member `error` of the answer (scheduler.md 3)."""

    def __init__(self, message: str, faults: Sequence[tuple[int, str, str, Mapping[str, object]]]) -> None:
        violations = [Violation(f"tasks.nodes[{index}].{field}", text) for index, field, text, _ in faults]
        super().__init__(message, violations)
        self.extra = {"error": [{"message": text, "error": facts} for _, _, text, facts in faults]}


class CursorTooOld(BadRequest):
    """What a cursor points at has been deleted; what came after it cannot be told completely."""

    code = "CursorTooOld"
    grpc_status = grpc.StatusCode.OUT_OF_RANGE


class NoMatchingBackend(BadRequest):
    """No store is configured for objects of this name and project (object.md 2)."""

    code = "NoMatchingBackend"


class AuthenticationFailed(QueueError):
    """Credentials were given and do not hold."""

    code = "AuthenticationFailed"
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class InsufficientScopes(QueueError):
    """The caller is known (or anonymous) and may not do this; the message names what is missing."""

    code = "InsufficientScopes"
    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class ResourceNotFound(QueueError):
    """The named thing does not exist."""

    code = "ResourceNotFound"
    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404


class RequestConflict(QueueError):
    """The named thing is in a state that forbids the request."""

    code = "RequestConflict"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class AlreadyExists(RequestConflict):
    """Something else is stored under this id."""

    grpc_status = grpc.StatusCode.ALREADY_EXISTS


class ResourceExpired(QueueError):
    """The named thing existed, and its time is over."""

    code = "ResourceExpired"
    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 410


class InputTooLarge(QueueError):
    """The request exceeds a size limit."""

    code = "InputTooLarge"
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 413


class ErrorArtifact(QueueError):
    """The artifact asked for could not be made; `reason` and `text` say why (queue.md 7.6)."""

    code = "ErrorArtifact"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 424

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"the artifact could not be made: {reason}: {text}", reason=reason)
        self.reason = reason
        self.text = text
        self.headers = {"x-taskcluster-artifact-storage-type": "error"}
        self.body = {"reason": reason, "message": text}


class LegacyErrorArtifact(ErrorArtifact):
    """The same for clients of 2014 (queue.md 4.2)."""

    http_status = 403


class NoMatchingMethod(QueueError):
    """The object can be had, and by none of the ways the caller knows (object.md 2.3)."""

    code = "NoMatchingMethod"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 406


class InternalServerError(QueueError):
    """A bug or a broken part; the cause is in the log under the incident id, never in the message."""


class NotImplementedYet(QueueError):
    """The method is declared and its handler has not been built."""

    code = "NotImplemented"
    grpc_status = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501


class Unavailable(QueueError):
    """A part this call needs is away; the same call may succeed soon."""

    code = "Unavailable"
    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503


class OutOfSpace(Unavailable):
    """The artifact store holds as much as it may, or its disk is full."""

    code = "OutOfSpace"
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 507
