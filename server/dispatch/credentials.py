"""Claims as messages, with the credentials that go along (queue.md 1.7)."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from server import definitions
from server.codec import pieces
from server.identity.task_credentials import TaskCredentialIssuer
from server.transitions.claiming import Offered
from server.views import credentials_view, serialized_status, stamp, status_message
from tcqueue.v1.claim_pb2 import Claim, TaskCredentials
from tcqueue.v1.task_pb2 import TaskDefinition

# Fields of Claim, and TaskDefinition.priority, whose type is a number.
_STATUS = pieces.tag(Claim.STATUS_FIELD_NUMBER)
_TASK = pieces.tag(Claim.TASK_FIELD_NUMBER)
_CREDENTIALS = pieces.tag(Claim.CREDENTIALS_FIELD_NUMBER)
_PRIORITY = bytes([TaskDefinition.PRIORITY_FIELD_NUMBER << 3])


def claim_message(offer: Offered, issuer: TaskCredentialIssuer) -> Claim:
    """An offered or claimed run with everything its worker needs."""
    task = definitions.load(offer.definition, offer.facts.priority)
    run = offer.run()
    group, worker = run.worker_group or "", run.worker_id or ""
    issued = issuer.issue(
        offer.facts.task_id, offer.run_id, group, worker, offer.taken_until, task.scopes, offer.started
    )
    return Claim(
        status=status_message(offer.facts, task),
        run_id=offer.run_id,
        worker_group=group,
        worker_id=worker,
        taken_until=stamp(offer.taken_until),
        task=task,
        credentials=credentials_view(issued),
    )


def serialized_claim(offer: Offered, issuer: TaskCredentialIssuer) -> bytes:
    """The same as it goes over the wire. The definition goes as it is stored; a priority that has been
    changed since follows it."""
    task = TaskDefinition.FromString(offer.definition)
    run = offer.run()
    group, worker = run.worker_group or "", run.worker_id or ""
    issued = issuer.issue(
        offer.facts.task_id, offer.run_id, group, worker, offer.taken_until, task.scopes, offer.started
    )
    status = serialized_status(offer.facts, task)
    credentials = credentials_view(issued).SerializeToString()
    definition = offer.definition
    if task.priority != offer.facts.priority:
        definition += _PRIORITY + pieces.varint(offer.facts.priority)
    return b"".join(
        (
            *(_STATUS, pieces.varint(len(status)), status),
            _rest(offer.run_id, group, worker, offer.taken_until),
            *(_TASK, pieces.varint(len(definition)), definition),
            *(_CREDENTIALS, pieces.varint(len(credentials)), credentials),
        )
    )


@lru_cache(maxsize=4096)
def _rest(run_id: int, worker_group: str, worker_id: str, taken_until: datetime) -> bytes:
    """The fields of a serialized claim that claims made together share."""
    return Claim(
        run_id=run_id, worker_group=worker_group, worker_id=worker_id, taken_until=stamp(taken_until)
    ).SerializeToString()


def credentials_message(
    issuer: TaskCredentialIssuer,
    task_id: str,
    run_id: int,
    worker_group: str,
    worker_id: str,
    taken_until: datetime,
    definition: bytes,
    now: datetime,
) -> TaskCredentials:
    """Fresh credentials for a renewed claim."""
    scopes = TaskDefinition.FromString(definition).scopes
    issued = issuer.issue(task_id, run_id, worker_group, worker_id, taken_until, scopes, now)
    return credentials_view(issued)
