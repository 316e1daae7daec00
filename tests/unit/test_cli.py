"""The command line without a server: help, options, files, messages, output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import grpc
import jwt
import pytest
from click.testing import CliRunner, Result

from server.cli import calls, cli
from server.cli.base import CommandError, parse_duration, print_table, span
from server.cli.calls import connection_from_env
from server.cli.clients import changed_scopes
from server.cli.definitions import definition_of
from server.cli.graphs import read_graph
from server.cli.settings import settings_table
from server.client.errors import Failure
from server.config import Settings
from server.domain import slugid
from tcqueue.v1.task_pb2 import Priority, Requires

TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the surroundings."""
    for name in list(os.environ):
        if name.startswith(("TCQUEUE_", "TASKCLUSTER_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    """Runs a command; its output and error output are apart."""
    return CliRunner().invoke(cli, list(arguments), prog_name="tcqueue")


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0, result.output
    assert f"tcqueue {' '.join(path[:1])}" in result.stdout.split("Options:")[1]
    assert all(len(line) <= 110 for line in result.stdout.splitlines() if "=" not in line)


def test_the_root_help_names_all_that_there_is() -> None:
    names = "serve demo worker task group queue token client role migrate check claim-reaper".split()
    names += ["deadline-reaper", "retire-tasks"]
    shown = invoke("--help").stdout
    assert [name for name in names if f"\n  {name} " not in shown] == []


def test_help_imports_neither_grpc_nor_the_server() -> None:
    code = (
        "import sys\n"
        "from server.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'grpc', 'google.protobuf', 'psycopg', 'rich', 'structlog', 'server.app', 'uvicorn'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_help_lists_every_setting_with_its_default() -> None:
    shown = invoke("serve", "--help").stdout
    for line in settings_table().splitlines():
        assert line.strip() in shown
    assert "TCQUEUE_CLAIM_TIMEOUT_S=1200.0" in shown
    assert "DATABASE_URL=" in shown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tsk"], "did you mean `task`?"),
        (["task", "cancl"], "did you mean `cancel`?"),
        (["task", "zzz"], "there are cancel, create, log"),
    ],
)
def test_a_misspelt_command_is_understood(arguments: list[str], text: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("2 hours", 7200),
        ("1 day", 86400),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("3 weeks", 1814400),
        ("", None),
        ("soon", None),
        ("5 parsecs", None),
        ("h", None),
    ],
)
def test_lengths_of_time(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_lengths_of_time_are_shown_as_people_say_them() -> None:
    shown = [span(s) for s in (0.04, 9.94, 59, 61, 7260, 90000, -5)]
    assert shown == ["0.0s", "9.9s", "59s", "1m 01s", "2h 01m", "1d 1h", "-5.0s"]


def test_tables_are_as_wide_as_their_contents(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "name"), [("long cell", "x"), ("s", click.style("y", fg="red"))])
    print_table(("a",), [], empty="nothing here")
    assert capsys.readouterr().out.splitlines() == [
        "A          NAME",
        "long cell  x",
        "s          y",
        "nothing here",
    ]


# -- definitions


def test_a_definition_is_filled_in() -> None:
    before = datetime.now(UTC)
    made = definition_of({"taskQueueId": "p/t", "payload": {"command": "make test\nmore"}})
    assert made.task_queue_id == "p/t"
    assert json.loads(made.payload) == {"command": "make test\nmore"}
    assert made.metadata.name == "make test"
    assert "@" in made.metadata.owner
    created, deadline = made.created.ToDatetime(UTC), made.deadline.ToDatetime(UTC)
    assert timedelta(seconds=-1) < created - before < timedelta(seconds=60)
    assert timedelta(hours=23, minutes=59) < deadline - created <= timedelta(days=1, seconds=1)
    assert not made.HasField("expires")
    assert made.created.nanos % 1_000_000 == 0


def test_a_definition_takes_all_that_the_api_knows() -> None:
    made = definition_of(
        {
            "taskQueueId": "p/t",
            "schedulerId": "me",
            "created": {"$fromNow": "0"},
            "deadline": "2030-01-02T03:04:05.678Z",
            "expires": {"$fromNow": "2 days"},
            "priority": "very-high",
            "requires": "all-resolved",
            "retries": 0,
            "tags": {"kind": "test"},
            "payload": {"big": 12345678901234567890},
            "extra": {"a": [1.0, None]},
            "metadata": {"name": "n", "description": "d", "owner": "o", "source": "https://s"},
        }
    )
    assert (made.priority, made.requires) == (Priority.PRIORITY_VERY_HIGH, Requires.REQUIRES_ALL_RESOLVED)
    assert made.HasField("retries") and made.retries == 0
    assert made.deadline.ToDatetime() == datetime(2030, 1, 2, 3, 4, 5, 678000)
    assert made.payload == '{"big":12345678901234567890}'
    assert json.loads(made.extra) == {"a": [1.0, None]}
    assert dict(made.tags) == {"kind": "test"}
    assert made.metadata.name == "n"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"workerTyp": "x"}, 'must not have the property "workerTyp"'),
        ({"metadata": {"nam": "x"}}, 'metadata must not have the property "nam"'),
        ({"priority": "urgent"}, "priority must be one of lowest, very-low"),
        ({"deadline": "tomorrow"}, "deadline must be a date such as"),
        ({"deadline": {"$fromNow": "soon"}}, "deadline: $fromNow takes a length of time"),
        ({"dependencies": ["a", 1]}, "dependencies/1 must be a text"),
        ({"dependencies": "a"}, "dependencies must be a list"),
        ({"retries": 1.5}, "retries must be a whole number"),
        ({"tags": {"a": 1}}, "tags/a must be a text"),
        ({"metadata": 3}, "metadata must be an object"),
    ],
)
def test_what_a_definition_cannot_be_is_said_with_its_path(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(CommandError) as caught:
        definition_of({"taskQueueId": "p/t", **fields})
    assert text in caught.value.message


def test_a_graph_file_knows_its_tasks_by_name() -> None:
    known = slugid.nice()
    other = slugid.nice()
    tasks, names = read_graph(
        {
            "build": {"payload": {"command": "make", "env": {"A": "own"}}},
            known: {"taskQueueId": "q/own", "dependencies": ["build", other], "metadata": {"name": "given"}},
        },
        "groupgroupQgroupgroupA",
        task_queue_id="q/t",
        env={"A": "1", "B": "2"},
    )
    build, test = tasks
    assert names == {build.task_id: "build", known: known}
    assert slugid.is_slugid(build.task_id)
    assert (build.task.task_queue_id, test.task.task_queue_id) == ("q/t", "q/own")
    assert list(test.task.dependencies) == [build.task_id, other]
    assert {task.task.task_group_id for task in tasks} == {"groupgroupQgroupgroupA"}
    assert json.loads(build.task.payload) == {"command": "make", "env": {"A": "1", "B": "2"}}
    assert (build.task.metadata.name, test.task.metadata.name) == ("build", "given")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "a graph file holds a JSON object"),
        ({}, "a graph file holds a JSON object"),
        ({"a b": {}}, "'a b' can be no task's name"),
        ({"a": 1}, "task a: a definition is a JSON object"),
        ({"a": {"retries": "many"}}, "task a: retries must be a whole number"),
    ],
)
def test_what_a_graph_file_cannot_hold_is_said_with_the_task(document: Any, text: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_graph(document, slugid.nice(), task_queue_id="q/t")
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-c", "x"], "no queue is given"),
        (["-q", "p/t", "--payload", "{"], "--payload is not JSON"),
        (["-q", "p/t", "--payload", "3"], "the payload must be a JSON object"),
        (["-q", "p/t", "--env", "X"], "--env takes NAME=VALUE, not 'X'"),
        (["nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["broken.json"], "broken.json is not JSON"),
        (["list.json"], "list.json must hold a JSON object"),
    ],
)
def test_task_create_refuses_what_it_cannot_read(arguments: list[str], text: str) -> None:
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    result = invoke("task", "create", *arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.output


# -- who and where


def test_tokens_are_what_any_jwt_library_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCQUEUE_CLIENT_ID", "ci/me")
    monkeypatch.setenv("TCQUEUE_CLIENT_ACCESS_TOKEN", TOKEN)
    result = invoke("token", "--lifetime", "2h", "--scope", "queue:status:*", "--scope", "b")
    claims = jwt.decode(result.stdout.strip(), TOKEN, algorithms=["HS256"], issuer="ci/me")
    assert claims["authorizedScopes"] == ["queue:status:*", "b"]
    assert 7100 < claims["exp"] - datetime.now(UTC).timestamp() < 7300
    as_json = json.loads(invoke("token", "--json").stdout)
    assert "authorizedScopes" not in jwt.decode(as_json["token"], TOKEN, algorithms=["HS256"])
    assert as_json["clientId"] == "ci/me"


@pytest.mark.parametrize("arguments", [["--lifetime", "32 days"], ["--lifetime", "0"]])
def test_tokens_last_a_month_at_most(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCQUEUE_CLIENT_ID", "ci/me")
    monkeypatch.setenv("TCQUEUE_CLIENT_ACCESS_TOKEN", TOKEN)
    assert "up to 31 days" in invoke("token", *arguments).stderr


def test_without_credentials_there_is_no_token() -> None:
    result = invoke("token")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: no credentials are set",
        "hint: set TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN",
    ]


def test_no_queue_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCQUEUE_CLIENT_ADDRESS", "127.0.0.1:1")
    result = invoke("queue", "list")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: no queue answers at 127.0.0.1:1",
        "hint: start one with `tcqueue serve`, or say where it is with TCQUEUE_CLIENT_ADDRESS",
    ]


@pytest.mark.parametrize(
    ("failure", "message", "hint"),
    [
        (
            Failure(grpc.StatusCode.UNAUTHENTICATED, "no such client", "AUTHENTICATION_FAILED"),
            "no such client",
            "check TCQUEUE_CLIENT_ID",
        ),
        (
            Failure(grpc.StatusCode.PERMISSION_DENIED, "you lack x", "INSUFFICIENT_SCOPES"),
            "you lack x",
            "you called without credentials",
        ),
        (
            Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                "bad",
                "INPUT_VALIDATION_ERROR",
                {},
                [("task.routes", "many")],
            ),
            "the queue refused the request\n  task.routes: many",
            "",
        ),
        (Failure(grpc.StatusCode.UNAVAILABLE, "away", "UNAVAILABLE"), "away", ""),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"), "too large", "max_message_bytes"),
    ],
)
def test_refusals_end_commands_with_what_to_do(failure: Failure, message: str, hint: str) -> None:
    error = connection_from_env().error(failure)
    assert error.message == message
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)


class Lost(grpc.RpcError):
    """A call that the server left."""

    def __init__(self, status: grpc.StatusCode) -> None:
        super().__init__()
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "gone"


def test_a_watch_goes_on_with_the_next_server(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE
    attempts: list[list[str | Lost]] = [
        ["a", "b", Lost(unavailable)],
        [Lost(unavailable)],
        ["c", Lost(grpc.StatusCode.NOT_FOUND)],
    ]
    asked: list[list[str]] = []
    seen: list[str] = []

    def method(request: list[str], **_: object) -> Iterator[str]:
        asked.append(list(request))
        for answer in attempts.pop(0):
            if isinstance(answer, Lost):
                raise answer
            yield answer

    def note(answer: str) -> None:
        request[:] = [answer]

    monkeypatch.setattr(calls, "_AGAIN_S", 0.0)
    queue = calls.Queue(connection_from_env())
    request = ["start"]
    with pytest.raises(CommandError, match="gone"):
        for answer in queue.follow(method, request, note=note):
            seen.append(answer)
    assert seen == ["a", "b", "c"]
    assert asked == [["start"], ["b"], ["b"]]
    # One that never came about is not tried again.
    attempts.append([Lost(unavailable)])
    with pytest.raises(CommandError, match="no queue answers"):
        list(queue.follow(method, request))
    queue.close()


def test_addresses_and_tls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert connection_from_env().address == "127.0.0.1:50051"
    assert connection_from_env("queue.example:443").tls is None
    monkeypatch.setenv("TCQUEUE_CLIENT_ADDRESS", "https://queue.example:443/")
    found = connection_from_env()
    assert found.address == "queue.example:443"
    assert found.tls is not None and found.tls.ca_file == ""
    monkeypatch.setenv("TCQUEUE_CLIENT_CA_FILE", "ca.pem")
    found = connection_from_env("queue.example:444")
    assert found.tls is not None and found.tls.ca_file == "ca.pem"


def test_half_of_the_credentials_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCQUEUE_CLIENT_ID", "ci/me")
    with pytest.raises(CommandError, match="TCQUEUE_CLIENT_ID is set and TCQUEUE_CLIENT_ACCESS_TOKEN is not"):
        connection_from_env()


# -- the rest


def test_settings_that_cannot_be_read_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCQUEUE_CLAIM_TIMEOUT_S", "long")
    result = invoke("check", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert (finding["check"], finding["state"]) == ("settings", "fail")
    assert "TCQUEUE_CLAIM_TIMEOUT_S takes a number of seconds" in finding["text"]


def test_serve_refuses_settings_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value, text in [
        ("TCQUEUE_CLAIM_TIMOUT_S", "5", "is not a setting"),
        ("TCQUEUE_LOG_LEVEL", "loud", "TCQUEUE_LOG_LEVEL takes debug, info, warning, error"),
        ("TCQUEUE_LOG_FORMAT", "xml", "TCQUEUE_LOG_FORMAT takes auto, json or console"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            result = invoke("serve", "--data-dir", "fresh")
        assert result.exit_code == 1
        assert text in result.stderr
    assert not Path("fresh").exists()


def test_logs_of_this_machine_are_shown(tmp_path: Path) -> None:
    task_id = slugid.nice()
    folder = tmp_path / "data" / "logs" / task_id
    folder.mkdir(parents=True)
    for run, text in enumerate(["first\n", "second\n"]):
        (folder / f"{run}.log").write_text(text)
    here = ("--log-dir", "data/logs")
    assert invoke("task", "log", task_id, *here).stdout == "second\n"
    assert invoke("task", "log", task_id, "--run", "0", *here).stdout == "first\n"
    assert "there are runs 0, 1" in invoke("task", "log", task_id, "--run", "7", *here).stderr
    assert "there is no log" in invoke("task", "log", slugid.nice(), *here).stderr
    assert "is no task id" in invoke("task", "log", "../../etc/passwd").stderr


@pytest.mark.parametrize(
    ("stored", "scopes", "added", "removed", "wanted"),
    [
        (["a", "b"], [], [], [], ["a", "b"]),
        (["a", "b"], ["c"], [], [], ["c"]),
        (["a", "b"], [], ["c", "a"], ["b"], ["a", "c"]),
    ],
)
def test_scopes_are_replaced_added_and_removed(
    stored: list[str], scopes: list[str], added: list[str], removed: list[str], wanted: list[str]
) -> None:
    assert changed_scopes(stored, scopes, added, removed) == wanted


def test_the_environment_of_a_serving_process_carries_every_setting() -> None:
    from server.cli.supervisor import environment_of

    settings = Settings(
        database_url="postgresql://x",
        claim_timeout_s=1.5,
        loops=False,
        static_clients=[{"clientId": "static/a", "accessToken": TOKEN, "scopes": ["*"]}],
        http_listen="",
    )
    assert Settings.from_env(environment_of(settings)) == settings
