"""Messages as JSON and back (compat.md 4, 5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.codec import reading, writing
from server.errors import Violation
from tcqueue.v1.client_pb2 import UpdateClientRequest
from tcqueue.v1.run_pb2 import ReasonCreated, Run, RunState
from tcqueue.v1.task_graph_pb2 import NewTaskGraphNode
from tcqueue.v1.task_group_pb2 import ListTaskGroupRequest
from tcqueue.v1.task_pb2 import Priority, Requires, TaskDefinition, TaskMetadata, TaskStatus


def read(message: Any, text: str | bytes) -> list[Violation]:
    """What is wrong with a text, read into a message."""
    body = text.encode() if isinstance(text, str) else text
    found: list[Violation] = []
    reading.fill(message, reading.parse(body), body, found)
    return found


def written(message: Any) -> Any:
    """The message's JSON values."""
    return json.loads(writing.to_bytes(writing.to_value(message), indent=True))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
DATES = st.integers(-62_135_596_800_000, 253_402_300_799_999)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def definitions(draw: st.DrawFn) -> TaskDefinition:
    """Definitions of every shape."""
    task = TaskDefinition(
        payload=json.dumps(
            draw(st.dictionaries(TEXTS, JSON_VALUES, max_size=4)), ensure_ascii=draw(st.booleans())
        ),
        dependencies=draw(st.lists(TEXTS, max_size=3)),
        scopes=draw(st.lists(TEXTS, max_size=3)),
        tags=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        priority=draw(st.sampled_from(Priority.values())),
        requires=draw(st.sampled_from(Requires.values())),
    )
    if draw(st.booleans()):
        task.retries = draw(st.integers(-(2**31), 2**31 - 1))
        task.extra = json.dumps(draw(st.dictionaries(TEXTS, JSON_VALUES, max_size=3)))
        task.metadata.CopyFrom(TaskMetadata(name=draw(TEXTS)))
    for stamp in (task.created, task.deadline):
        stamp.FromMilliseconds(draw(DATES))
    return task


@settings(max_examples=200, deadline=None)
@given(definitions())
def test_there_and_back(task: TaskDefinition) -> None:
    """Nothing is lost and nothing changed, free JSON not by a digit."""
    text = writing.to_bytes(writing.to_value(task), indent=True)
    again = TaskDefinition()
    assert read(again, text) == []
    assert again == task


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([f.camelcase_name for f in TaskDefinition.DESCRIPTOR.fields]), JSON_VALUES
    )
)
def test_whatever_it_is_given(value: dict[str, Any]) -> None:
    """Reading collects what is wrong and raises nothing."""
    for violation in read(TaskDefinition(), json.dumps(value)):
        assert violation.field.partition("/")[0] in value
        assert violation.description


@settings(max_examples=100, deadline=None)
@given(definitions(), st.randoms())
def test_the_order_of_keys_means_nothing(task: TaskDefinition, rng: Any) -> None:
    """compat.md 4."""
    value = written(task)
    keys = list(value)
    rng.shuffle(keys)
    again = TaskDefinition()
    assert read(again, json.dumps({key: value[key] for key in keys})) == []
    assert written(again) == value


@pytest.mark.parametrize(
    "number", ["0", "-0", "1.0", "1.50", "1e5", "1E+400", "12345678901234567890123", "0.1", "1e-7"]
)
def test_numbers_digit_for_digit(number: str) -> None:
    """compat.md 4."""
    task = TaskDefinition()
    assert read(task, f'{{"payload": {{"n":{number}}}}}') == []
    assert task.payload == f'{{"n":{number}}}'
    assert f'"payload": {{"n":{number}}}' in writing.to_bytes(writing.to_value(task), indent=True).decode()


def test_deep_nesting() -> None:
    """compat.md 4: some hundred levels; what is far beyond is refused, not met with a crash."""
    deep = "[" * 500 + "]" * 500
    task = TaskDefinition()
    assert read(task, f'{{"payload": {{"d":{deep}}}}}') == []
    assert deep in task.payload
    with pytest.raises(ValueError):
        reading.parse(b"[" * 100_000)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-22T19:19:07.025417Z", 1795375147025),
        ("2026-11-22T19:19:07.0259999999Z", 1795375147025),
        ("2026-11-22T21:19:07.025+02:00", 1795375147025),
        ("2025-01-01T00:00:00Z", 1735689600000),
        ("2025-01-01t00:00:00z", 1735689600000),
        ("1969-12-31T23:59:59.999Z", -1),
        ("0001-01-01T00:00:00.000Z", -62135596800000),
    ],
)
def test_dates(text: str, milliseconds: int) -> None:
    """compat.md 5: any offset and fraction, cut to milliseconds; three digits and Z on the way out."""
    task = TaskDefinition()
    assert read(task, json.dumps({"created": text})) == []
    assert task.created.seconds * 1000 + task.created.nanos // 1_000_000 == milliseconds
    shown = written(task)["created"]
    assert len(shown) == 24 and shown.endswith("Z")


@pytest.mark.parametrize(
    "text",
    [
        "2025-01-01",
        "2025-01-01T00:00:00",
        "2025-13-01T00:00:00Z",
        "2025-01-01T00:00:00+2",
        "now",
        "",
        "\u0662\u0660\u0662\u0665-01-01T00:00:00Z",
        "2025-01-01T00:00:00Z\n",
    ],
)
def test_what_is_no_date(text: str) -> None:
    """compat.md 5: a zone is required, and ASCII."""
    (violation,) = read(TaskDefinition(), json.dumps({"created": text}))
    assert violation.field == "created"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"retries": True}, "retries"),
        ({"retries": 1.5}, "retries"),
        ({"retries": "1"}, "retries"),
        ({"retries": 2**31}, "retries"),
        ({"retries": None}, "retries"),
        ({"schedulerId": None}, "schedulerId"),
        ({"scopes": "a"}, "scopes"),
        ({"scopes": ["a", 1]}, "scopes/1"),
        ({"tags": {"a": None}}, "tags/a"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"name": 1}}, "metadata/name"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": "PRIORITY_LOW"}, "priority"),
        ({"strange": 1}, ""),
    ],
    ids=str,
)
def test_what_does_not_fit(value: dict[str, Any], field: str) -> None:
    """Where it is, in JSON's names."""
    (violation,) = read(TaskDefinition(), json.dumps(value))
    assert violation.field == field
    if not field:
        assert '"strange"' in violation.description


def test_whole_numbers_written_as_fractions() -> None:
    """compat.md 5: to JavaScript 5.0 is 5."""
    task = TaskDefinition()
    assert read(task, '{"retries": 5.0}') == []
    assert task.retries == 5


def test_half_of_a_surrogate_pair() -> None:
    """It is JSON, and no text."""
    for text in ('{"payload": {"a": "\\ud800"}}', '{"metadata": {"name": "\\ud800"}}', '{"\\ud800": 1}'):
        assert "surrogate" in read(TaskDefinition(), text)[0].description


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf{}", b"{}".decode().encode("utf-16"), b'{"a": NaN}', b"\xff"])
def test_what_is_no_json(body: bytes) -> None:
    """UTF-8 without a mark, and no number that is none."""
    with pytest.raises(ValueError):
        reading.parse(body)


def test_what_is_always_there() -> None:
    """compat.md 5: numbers, flags and lists, be they nothing; never null."""
    run = Run(state=RunState.RUN_STATE_PENDING, reason_created=ReasonCreated.REASON_CREATED_SCHEDULED)
    assert written(TaskStatus(task_id="t", runs=[run])) == {
        "taskId": "t",
        "retriesLeft": 0,
        "runs": [{"runId": 0, "state": "pending", "reasonCreated": "scheduled"}],
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("00", 0),
        ("7", 7),
        ("0" * 40 + "7", 7),
        ("1" + "0" * 40, 2**31 - 1),
        ("4294967296", 2**31 - 1),
    ],
)
def test_numbers_in_urls(text: str, number: int) -> None:
    """Digits only; what is too large is the largest."""
    request, found = ListTaskGroupRequest(), list[Violation]()
    reading.fill_text(request, "limit", text, found)
    assert (request.limit, found) == (number, [])


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1e3", " 1", "\u0661"])
def test_what_is_no_number_in_a_url(text: str) -> None:
    """compat.md 3."""
    found: list[Violation] = []
    reading.fill_text(ListTaskGroupRequest(), "limit", text, found)
    assert [violation.field for violation in found] == ["limit"]


def test_lists_that_may_be_absent() -> None:
    """None at all and an empty one are two things (updateClient)."""
    absent, empty = UpdateClientRequest(), UpdateClientRequest()
    assert read(absent, '{"description": "d"}') == read(empty, '{"description": "d", "scopes": []}') == []
    assert (absent.HasField("scopes"), empty.HasField("scopes")) == (False, True)
    assert ("scopes" in written(absent), written(empty)["scopes"]) == (False, [])


def test_defaults() -> None:
    """What an error shows of a valid body."""
    filled = reading.with_defaults(TaskDefinition, {"retries": 1})
    assert (filled["retries"], filled["schedulerId"], filled["priority"], filled["tags"]) == (
        1,
        "-",
        "lowest",
        {},
    )


def test_open_messages() -> None:
    """Members that nobody knows are passed over where the message says so, and only there."""
    text = b'{"taskId":"x","label":{"a":[1]},"task":{"payload":{"big":12345678901234567890123},"strange":1}}'
    node = NewTaskGraphNode()
    assert [(v.field, v.description) for v in read(node, text)] == [
        ("task", 'must not have the property "strange"')
    ]
    assert node.task_id == "x"
    assert node.task.payload == '{"big":12345678901234567890123}'
