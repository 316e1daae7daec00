"""Artifacts: created, replaced, finished, with their events in the same transaction (queue.md 7.3-7.5).

Of calls that arrive together one transaction is made, and all of them are judged under their tasks' locks,
so that nobody resolves a run or creates the same artifact in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from server.domain.slugid import v4
from server.domain.times import to_text
from server.errors import BadRequest, InputError, QueueError, RequestConflict, ResourceNotFound
from server.store.database import Statement, Transaction
from server.store.statements import load
from server.transitions import messages
from server.transitions.facts import TaskFacts, collect
from server.transitions.machine import TRANSITIONS, Effects, Machine, insert_events, rounds

_SQL = load("artifacts")

_PAST = timedelta(minutes=15)
"""How far back an expiry may lie: a slow worker's clock, a slow call."""

_GRACE = timedelta(minutes=25)
"""How long after its end a run that ended as an exception still takes artifacts."""

_ANNOUNCED = frozenset({"object", "reference", "link", "error"})
"""Types whose artifacts have an event; those of type s3 are only known to be there when they are read."""


@dataclass(slots=True)
class Artifact:
    """What is stored of an artifact besides its key; fields that its type does not have are None."""

    storage_type: str
    content_type: str
    content_length: int | None
    expires: datetime
    present: bool
    bucket: str | None = None
    url: str | None = None
    target: str | None = None
    reason: str | None = None
    message: str | None = None
    upload_id: str | None = None


@dataclass(slots=True)
class NewArtifact:
    """An artifact to create. By the rules of 2014 a run takes artifacts whatever has become of it, and of one
    that is there the content type does not matter (queue.md 4.2)."""

    task_id: str
    run_id: int
    name: str
    artifact: Artifact
    of_2014: bool = False


@dataclass(slots=True)
class FinishedArtifact:
    """An object artifact whose upload has ended; that its object is there has been seen if `seen`."""

    task_id: str
    run_id: int
    name: str
    upload_id: str
    seen: bool


Item: TypeAlias = NewArtifact | FinishedArtifact


class Standing(NamedTuple):
    """An artifact as it is after the call, and what of its task and run goes with it."""

    artifact: Artifact
    project_id: str
    worker_group: str
    worker_id: str
    now: datetime


class _Context(NamedTuple):
    """What stands in the tables: see `read_context`. None where there is no task, run or artifact."""

    now: datetime
    task_expires: datetime | None
    project_id: str
    state: str | None
    resolved: datetime | None
    worker_group: str | None
    worker_id: str | None
    known: Artifact | None
    doomed: bool


class NotSeen(BadRequest):
    """The artifact can be finished if its object is there, which has not been looked for yet."""


async def change_artifacts(machine: Machine, items: Sequence[Item]) -> list[Standing | QueueError]:
    """Creates or finishes each artifact that can be; returns for each how it stands, or why not.

    Raises for nothing but a database that is away.
    """
    results: list[Standing | QueueError] = [InputError("unreached")] * len(items)
    for indexes in rounds(items, lambda item: (item.task_id, item.run_id, item.name)):
        batch = [items[i] for i in indexes]

        async def run(
            tx: Transaction, batch: list[Item] = batch
        ) -> tuple[list[Standing | QueueError], Effects]:
            return await _change(tx, batch)

        outcomes, effects = await machine.db.in_transaction(run, hot=True)
        machine.tell(effects)
        for index, outcome in zip(indexes, outcomes, strict=True):
            results[index] = outcome
    return results


async def _change(tx: Transaction, batch: Sequence[Item]) -> tuple[list[Standing | QueueError], Effects]:
    ids = sorted({item.task_id for item in batch})
    announced = sorted({item.task_id for item in batch if _may_be_announced(item)})
    keys = ([item.task_id for item in batch], [item.run_id for item in batch], [item.name for item in batch])
    first: list[Statement] = [(TRANSITIONS["lock_tasks"], (ids,)), (_SQL["read_context"], keys)]
    if announced:
        first += [(TRANSITIONS["read_tasks"], (announced,)), (TRANSITIONS["read_runs"], (announced,))]
    _, rows, *status = await tx.pipeline(first)
    facts = collect(*status) if announced else {}
    effects = Effects()
    outcomes: list[Standing | QueueError] = []
    written: list[tuple[Item, Artifact]] = []
    for item, row in zip(batch, rows, strict=True):
        context = _context(row[1:])
        try:
            artifact = _created(item, context) if isinstance(item, NewArtifact) else _ended(item, context)
        except QueueError as e:
            outcomes.append(e)
            continue
        if artifact is not context.known:
            written.append((item, artifact))
        group, worker = context.worker_group or "", context.worker_id or ""
        outcomes.append(Standing(artifact, context.project_id, group, worker, context.now))
        if artifact.present and artifact.storage_type in _ANNOUNCED:
            effects.events.append(_event(facts[item.task_id], item, artifact, group, worker))
    ending = [(_SQL["write_artifacts"], _columns(written))] if written else []
    await tx.commit([*ending, *insert_events(effects)])
    return outcomes, effects


def _may_be_announced(item: Item) -> bool:
    return isinstance(item, FinishedArtifact) or (
        item.artifact.present and item.artifact.storage_type in _ANNOUNCED
    )


def _context(row: Sequence[object]) -> _Context:
    now, expires, project, state, resolved, group, worker, *known = row
    storage_type, content_type, length, artifact_expires, present, doomed, *details = known
    artifact = None
    if storage_type is not None:
        artifact = Artifact(storage_type, content_type, length, artifact_expires, present, *details)  # type: ignore[arg-type]
    return _Context(now, expires, project or "", state, resolved, group, worker, artifact, bool(doomed))  # type: ignore[arg-type]


def _created(item: NewArtifact, context: _Context) -> Artifact:
    """The artifact as it is to be stored. Raises what refuses it (queue.md 7.3, 7.4)."""
    new, now = item.artifact, context.now
    run = f"run {item.run_id} of task {item.task_id}"
    if new.expires < now - _PAST:
        raise InputError("expires must be in the future", expires=to_text(new.expires))
    if context.task_expires is None:
        raise InputError(f"task {item.task_id} does not exist", taskId=item.task_id)
    if context.state is None:
        raise InputError(f"{run} does not exist", taskId=item.task_id)
    if context.worker_group is None or context.worker_id is None:
        raise InputError(f"{run} was never claimed", taskId=item.task_id)
    if new.expires > context.task_expires:
        raise InputError(
            f"the artifact must not expire after its task, which does at {to_text(context.task_expires)}",
            expires=to_text(new.expires),
        )
    ended = context.resolved
    late = context.state != "exception" or ended is None or ended < now - _GRACE
    if context.state != "running" and late and not item.of_2014:
        raise RequestConflict(
            f"{run} is {context.state}: artifacts are taken while a run is running, and for "
            f"{_GRACE // timedelta(minutes=1)} minutes after it ended as an exception",
            taskId=item.task_id,
        )
    return new if context.known is None else _replaced(item, context.known, context.doomed)


def _replaced(item: NewArtifact, old: Artifact, doomed: bool) -> Artifact:
    """What the artifact that is there becomes. Raises RequestConflict when it may not become that."""
    new = item.artifact
    if doomed:
        raise _conflict(item, old, "it has expired and is being deleted")
    if new.content_type != old.content_type and new.storage_type != "link" and not item.of_2014:
        raise _conflict(item, old, "its content type cannot change")
    if new.expires < old.expires:
        raise _conflict(item, old, "its expiry cannot come closer")
    if new.storage_type == old.storage_type:
        if new.storage_type == "object":
            # A repeat goes on with the upload that is open; there is none once it is finished.
            if old.present or new.expires != old.expires or new.content_length != old.content_length:
                raise _conflict(item, old, "its upload cannot be begun anew")
            return old
        same = (new.bucket, new.target, new.reason, new.message)
        if same != (old.bucket, old.target, old.reason, old.message):
            raise _conflict(item, old, "what it holds cannot change")
    elif (old.storage_type, new.storage_type) != ("reference", "link"):
        raise _conflict(item, old, "its storage type cannot change")
    new.content_type, new.content_length = old.content_type, old.content_length
    return new


def _conflict(item: NewArtifact, old: Artifact, why: str) -> RequestConflict:
    return RequestConflict(
        f"artifact {item.name} exists with storageType {old.storage_type}, contentType {old.content_type} "
        f"and expires {to_text(old.expires)}: {why}",
        name=item.name,
    )


def _ended(item: FinishedArtifact, context: _Context) -> Artifact:
    """The artifact, finished. Raises what refuses that (queue.md 7.5)."""
    known = context.known
    if known is None or context.state is None or context.doomed:
        raise ResourceNotFound("Artifact not found", name=item.name)
    if known.storage_type != "object":
        raise InputError("Only object artifacts can be finished", storageType=known.storage_type)
    if known.present:
        return known
    if known.upload_id != item.upload_id:
        raise InputError("given uploadId does not match that for the artifact")
    if not item.seen:
        raise NotSeen("Object storing artifact data does not exist")
    return Artifact(known.storage_type, known.content_type, known.content_length, known.expires, True)


def new_upload_id() -> str:
    """An id for the upload of an object artifact."""
    return v4()


def _event(facts: TaskFacts, item: Item, artifact: Artifact, worker_group: str, worker_id: str) -> str:
    return messages.artifact_created(
        facts,
        item.run_id,
        worker_group,
        worker_id,
        storage_type=artifact.storage_type,
        name=item.name,
        expires=artifact.expires,
        content_type=artifact.content_type,
    )


def _columns(written: Sequence[tuple[Item, Artifact]]) -> list[list[object]]:
    """The rows to write, turned round for `unnest`."""
    rows = [
        (
            item.task_id,
            item.run_id,
            item.name,
            artifact.storage_type,
            artifact.content_type,
            artifact.content_length,
            artifact.expires,
            artifact.present,
            artifact.bucket,
            artifact.url,
            artifact.target,
            artifact.reason,
            artifact.message,
            artifact.upload_id,
        )
        for item, artifact in written
    ]
    return [list(column) for column in zip(*rows, strict=True)]
