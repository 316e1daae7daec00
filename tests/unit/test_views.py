"""What is put together from serialized parts says what the messages say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from server import definitions
from server.codec import pieces
from server.dispatch.credentials import claim_message, serialized_claim
from server.domain import frames, slugid
from server.identity.task_credentials import TaskCredentialIssuer
from server.transitions.claiming import Offered
from server.transitions.facts import RunFacts, TaskFacts, new_run
from server.views import serialized_status, status_message
from tcqueue.v1.claim_pb2 import Claim
from tcqueue.v1.task_pb2 import TaskDefinition, TaskMetadata, TaskStatus

NOW = datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
UNTIL = NOW + timedelta(minutes=20)

PENDING = new_run(0, "scheduled", NOW)
RUNNING = RunFacts(0, "running", "scheduled", None, "g", "w", UNTIL, NOW, NOW, None)
LOST = RunFacts(0, "exception", "scheduled", "claim-expired", "g", "w", UNTIL, NOW, NOW, UNTIL)
RETRIED = RunFacts(1, "running", "retry", None, "g", "w2", UNTIL, UNTIL, UNTIL, None)
ENDED = RunFacts(0, "exception", "exception", "canceled", None, None, None, NOW, None, UNTIL)


def task(task_id: str) -> TaskDefinition:
    """A definition as creation completes it."""
    definition = TaskDefinition(
        task_queue_id="prov/q",
        payload="{}",
        tags={"kind": "test"},
        scopes=["queue:a:*", "b"],
        routes=["index.x"],
        metadata=TaskMetadata(name="n", description="d" * 300, owner="o@x.y", source="https://x.y/"),
    )
    definition.created.FromDatetime(NOW)
    definition.deadline.FromDatetime(UNTIL)
    definitions.resolve_queue(definition)
    definitions.fill_defaults(task_id, definition)
    definitions.check_dates(definition, NOW, 5)
    return definition


def facts_of(task_id: str, definition: TaskDefinition, *runs: RunFacts, retries: int = 5) -> TaskFacts:
    """What is known of it, with these runs."""
    frame = frames.split(definitions.new_task(task_id, definition).frame)
    return TaskFacts(task_id, "prov/q", frame, definition.priority, retries, list(runs))


@pytest.mark.parametrize(
    "runs", [(), (PENDING,), (RUNNING,), (LOST, RETRIED), (ENDED,)], ids=lambda runs: str(len(runs))
)
@pytest.mark.parametrize("retries", [0, 5])
def test_a_serialized_status_is_the_status(runs: tuple[RunFacts, ...], retries: int) -> None:
    for _ in range(2):  # the second time its parts are remembered
        task_id = slugid.nice()
        definition = task(task_id)
        facts = facts_of(task_id, definition, *runs, retries=retries)
        assert TaskStatus.FromString(serialized_status(facts, definition)) == status_message(
            facts, definition
        )


def test_what_is_remembered_is_not_mixed_up() -> None:
    one, other = slugid.nice(), slugid.nice()
    first, second = task(one), task(other)
    second.scheduler_id = "another"
    for task_id, definition in ((one, first), (other, second), (one, first)):
        facts = facts_of(task_id, definition, PENDING)
        found = TaskStatus.FromString(serialized_status(facts, definition))
        assert (found.task_id, found.scheduler_id) == (task_id, definition.scheduler_id)


@pytest.mark.parametrize("priority", [1, 7])
@pytest.mark.parametrize("runs", [(RUNNING,), (LOST, RETRIED)], ids=len)
def test_a_serialized_claim_is_the_claim(runs: tuple[RunFacts, ...], priority: int) -> None:
    task_id = slugid.nice()
    definition = task(task_id)
    facts = facts_of(task_id, definition, *runs)
    facts.priority = priority
    stored = definition.SerializeToString()
    offer = Offered(0, facts, len(runs) - 1, stored, NOW, UNTIL, "stream")
    issuer = TaskCredentialIssuer("queue", slugid.v4() + slugid.v4())
    found = Claim.FromString(serialized_claim(offer, issuer))
    expected = claim_message(offer, issuer)
    assert found.credentials.client_id == expected.credentials.client_id
    assert found.credentials.certificate
    assert found.credentials.access_token
    found.ClearField("credentials")
    expected.ClearField("credentials")
    assert found == expected
    assert found.task.priority == priority


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16383, 16384, 2**31])
def test_lengths(value: int) -> None:
    data = pieces.varint(value)
    assert sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data)) == value
    assert [byte >= 0x80 for byte in data] == [True] * (len(data) - 1) + [False]
