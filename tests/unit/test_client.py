"""The client's parts that need no server: credentials, JSON, retries, what failures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from server.client.channel import channel_options, service_config
from server.client.credentials import Credentials, CredentialsError
from server.client.errors import failure_of
from server.client.json_form import JsonFormError, parse_into, to_json, word, words
from server.client.stream_worker import Backoff
from server.identity import tokens
from tcqueue.v1 import queue_service_pb2
from tcqueue.v1.claim_pb2 import Claim
from tcqueue.v1.run_pb2 import ReasonResolved, Run, RunState
from tcqueue.v1.task_pb2 import Priority, TaskDefinition, TaskState, TaskStatus

TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
CERTIFICATE = '{"version":1}'


# -- credentials


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("", "", "")),
        ({"TCQUEUE_CLIENT_ID": "a", "TCQUEUE_CLIENT_ACCESS_TOKEN": "b"}, ("a", "b", "")),
        ({"TASKCLUSTER_CLIENT_ID": "a", "TASKCLUSTER_ACCESS_TOKEN": "b"}, ("a", "b", "")),
        (
            {
                "TASKCLUSTER_CLIENT_ID": "a",
                "TASKCLUSTER_ACCESS_TOKEN": "b",
                "TASKCLUSTER_CERTIFICATE": CERTIFICATE,
                "TCQUEUE_CLIENT_ID": "c",
                "TCQUEUE_CLIENT_ACCESS_TOKEN": "d",
            },
            ("c", "d", ""),
        ),
        (
            {"TASKCLUSTER_CLIENT_ID": "a", "TASKCLUSTER_ACCESS_TOKEN": "b", "TASKCLUSTER_CERTIFICATE": "c"},
            ("a", "b", "c"),
        ),
    ],
)
def test_credentials_come_from_the_environment(
    environ: dict[str, str], expected: tuple[str, str, str]
) -> None:
    found = Credentials.from_env(environ)
    assert (found.client_id, found.access_token, found.certificate) == expected
    assert found.anonymous == (not expected[0])


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"TCQUEUE_CLIENT_ID": "a"}, "TCQUEUE_CLIENT_ID is set and TCQUEUE_CLIENT_ACCESS_TOKEN is not"),
        (
            {"TASKCLUSTER_ACCESS_TOKEN": "a"},
            "TASKCLUSTER_ACCESS_TOKEN is set and TASKCLUSTER_CLIENT_ID is not",
        ),
        ({"TCQUEUE_CLIENT_CREDENTIALS_FILE": "/nowhere"}, "/nowhere holds no credentials"),
    ],
)
def test_half_of_the_credentials_is_an_error(environ: dict[str, str], text: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        Credentials.from_env(environ)
    assert text in str(caught.value)


def test_the_file_that_workers_keep_fresh_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"clientId": "t", "accessToken": "u", "certificate": CERTIFICATE}))
    environ = {
        "TCQUEUE_CLIENT_CREDENTIALS_FILE": str(file),
        "TCQUEUE_CLIENT_ID": "a",
        "TCQUEUE_CLIENT_ACCESS_TOKEN": "b",
    }
    found = Credentials.from_env(environ)
    assert (found.client_id, found.access_token, found.certificate) == ("t", "u", CERTIFICATE)


def test_a_token_is_kept_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    credentials = Credentials("ci/me", TOKEN, CERTIFICATE, authorized_scopes=["a"])
    first = credentials.metadata()
    ((key, value),) = first
    assert key == "authorization"
    claims = tokens.read(value.removeprefix("Bearer "))
    assert claims.client_id == "ci/me"
    assert (claims.certificate, claims.authorized_scopes) == ({"version": 1}, ["a"])
    assert claims.fields["exp"] == now + 900
    now += 700
    assert credentials.metadata() == first
    now += 100  # 100 s before its end it could run out on its way
    second = credentials.metadata()
    assert tokens.read(second[0][1].removeprefix("Bearer ")).fields["exp"] == now + 900


def test_nobody_calls_without_metadata() -> None:
    assert Credentials().metadata() == ()


def test_a_certificate_that_is_no_json_is_an_error() -> None:
    with pytest.raises(CredentialsError, match="certificate is not JSON"):
        Credentials("a", TOKEN, "not json").metadata()


# -- channels


def test_every_unary_call_is_repeated_but_those_that_are_not_the_same_twice() -> None:
    (config,) = json.loads(service_config())["methodConfig"]
    named = {entry["method"] for entry in config["name"]}
    methods = queue_service_pb2.DESCRIPTOR.services_by_name["Queue"].methods
    unary = {m.name for m in methods if not m.client_streaming and not m.server_streaming}
    assert unary - named == {"ClaimTasks"}
    assert named <= unary
    assert {entry["service"] for entry in config["name"]} == {"tcqueue.v1.Queue"}
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_clients_ping_no_oftener_than_the_server_allows() -> None:
    from server.app import _KEEPALIVE

    client, server = dict(channel_options()), dict(_KEEPALIVE)
    allowed = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert int(client["grpc.keepalive_time_ms"]) >= 2 * allowed


def test_pauses_grow_and_stay_below_the_grace_of_broken_streams() -> None:
    backoff = Backoff(first_s=0.2, longest_s=10.0)
    assert all(0.0 < backoff.pause(0) <= 0.2 for _ in range(100))
    assert max(backoff.pause(1000) for _ in range(200)) <= 10.0
    assert len({backoff.pause(5) for _ in range(10)}) > 1


# -- failures


class _Error(grpc.RpcError):
    """What gRPC raises, as far as it is looked at."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Any = ()) -> None:
        super().__init__(text)
        self._parts = (code, text, trailing)

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


def test_a_failure_is_taken_out_of_its_wrappings() -> None:
    details = []
    for message in (
        error_details_pb2.ErrorInfo(reason="INPUT_ERROR", domain="tcqueue", metadata={"taskId": "x"}),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="task.a", description="no")]
        ),
        error_details_pb2.RetryInfo(),
    ):
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)
    status = status_pb2.Status(code=3, message="refused", details=details)
    trailing = [("other", "x"), ("grpc-status-details-bin", status.SerializeToString())]
    failure = failure_of(_Error(grpc.StatusCode.INVALID_ARGUMENT, "refused", trailing))
    assert (failure.status, failure.message) == (grpc.StatusCode.INVALID_ARGUMENT, "refused")
    assert (failure.reason, dict(failure.metadata)) == ("INPUT_ERROR", {"taskId": "x"})
    assert list(failure.violations) == [("task.a", "no")]
    assert not failure.passing


def test_a_failure_that_did_not_come_from_the_queue_has_no_reason() -> None:
    failure = failure_of(_Error(grpc.StatusCode.UNAVAILABLE, "connection refused", None))
    assert (failure.reason, failure.message) == ("", "connection refused")
    assert failure.passing


# -- JSON


def test_messages_become_the_apis_json() -> None:
    status = TaskStatus(
        task_id="t",
        state=TaskState.TASK_STATE_EXCEPTION,
        priority=Priority.PRIORITY_VERY_HIGH,
        runs=[
            Run(
                run_id=0,
                state=RunState.RUN_STATE_EXCEPTION,
                reason_resolved=ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN,
            )
        ],
    )
    status.deadline.FromJsonString("2030-01-02T03:04:05.600Z")
    assert to_json(status) == {
        "taskId": "t",
        "deadline": "2030-01-02T03:04:05.600Z",
        "retriesLeft": 0,
        "state": "exception",
        "runs": [{"runId": 0, "state": "exception", "reasonResolved": "worker-shutdown"}],
        "priority": "very-high",
    }


def test_free_json_is_a_value_and_not_a_text() -> None:
    task = TaskDefinition(payload='{"a":3600,"b":1.5,"c":[null]}')
    made = to_json(Claim(run_id=3, task=task))
    assert made["runId"] == 3
    assert made["task"]["payload"] == {"a": 3600, "b": 1.5, "c": [None]}
    assert isinstance(made["task"]["payload"]["a"], int)


def test_what_is_read_back_is_what_was_written() -> None:
    document: dict[str, Any] = {
        "taskQueueId": "p/t",
        "dependencies": ["a", "b"],
        "requires": "all-resolved",
        "routes": [],
        "priority": "high",
        "retries": 3,
        "created": "2030-01-02T03:04:05.006Z",
        "scopes": ["x"],
        "payload": {"n": 12345678901234567890},
        "metadata": {"name": "n"},
        "tags": {"k": "v"},
        "extra": {},
    }
    message = TaskDefinition()
    parse_into(message, document)
    assert to_json(message) == document


def test_null_stands_for_what_is_absent() -> None:
    message = TaskDefinition()
    parse_into(message, {"retries": None, "metadata": None})
    assert message == TaskDefinition()


def test_dates_with_an_offset_are_the_same_instant() -> None:
    message = TaskDefinition()
    parse_into(message, {"created": "2030-01-02T05:04:05.006+02:00"})
    assert to_json(message)["created"] == "2030-01-02T03:04:05.006Z"


@pytest.mark.parametrize("value", [3, "x", [], None])
def test_only_objects_are_messages(value: Any) -> None:
    with pytest.raises(JsonFormError, match="the document must be an object"):
        parse_into(TaskDefinition(), value)


def test_enums_have_words() -> None:
    resolved = words(ReasonResolved.DESCRIPTOR)
    assert resolved["claim-expired"] == ReasonResolved.REASON_RESOLVED_CLAIM_EXPIRED
    assert word(ReasonResolved.DESCRIPTOR, 0) == ""
    assert all(word(ReasonResolved.DESCRIPTOR, number) == text for text, number in resolved.items())
