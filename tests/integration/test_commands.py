"""The commands that call a queue, and those that work on its database, against a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from server.cli import cli
from server.client.credentials import Credentials
from server.domain import slugid
from tests.streams.harness import QUEUE, Client, Cluster, Instance


class Shell:
    """Runs commands as root of a server that runs in the test's own loop."""

    def __init__(self, cluster: Cluster, server: Instance, root: Client) -> None:
        self.root = root
        self.server = server
        self.environ: dict[str, str | None] = {
            "TCQUEUE_CLIENT_ADDRESS": server.address,
            "TCQUEUE_CLIENT_ID": "root",
            "TCQUEUE_CLIENT_ACCESS_TOKEN": cluster.root_token,
            "DATABASE_URL": cluster.settings.database_url,
            "TCQUEUE_ENCRYPTION_KEY": cluster.settings.encryption_key,
        }

    async def run(self, *arguments: str, code: int = 0, stdin: str = "") -> Result:
        """A command's result; its exit code is checked."""
        runner = CliRunner(env=self.environ)
        result = await asyncio.to_thread(runner.invoke, cli, list(arguments), input=stdin)
        assert result.exit_code == code, f"{arguments}: {result.output} {result.exception!r}"
        return result

    async def json(self, *arguments: str, code: int = 0) -> Any:
        """What a command prints with `--json`."""
        return json.loads((await self.run(*arguments, "--json", code=code)).stdout)

    async def lines(self, *arguments: str, code: int = 0) -> list[Any]:
        """What a command prints with `--json`, a document a line."""
        result = await self.run(*arguments, "--json", code=code)
        return [json.loads(line) for line in result.stdout.splitlines()]

    async def fails(self, *arguments: str) -> str:
        """The error of a command that fails."""
        return (await self.run(*arguments, code=1)).stderr


@pytest.fixture
async def shell(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    monkeypatch.chdir(tmp_path)
    async with AsyncExitStack() as stack:
        cluster = Cluster(dsn, stack)
        server = await cluster.start()
        yield Shell(cluster, server, await cluster.client(server.address))


# -- tasks


async def test_a_tasks_life_on_the_command_line(shell: Shell) -> None:
    made = await shell.json("task", "create", "-q", QUEUE, "-c", "make test", "--name", "tests", "-e", "A=1")
    task_id = made["taskId"]
    assert (made["state"], made["runs"][0]["runId"]) == ("pending", 0)
    shown = await shell.json("task", "show", task_id)
    assert shown["task"]["payload"] == {"command": "make test", "env": {"A": "1"}}
    assert shown["task"]["metadata"]["name"] == "tests"
    assert (await shell.json("task", "priority", task_id, "high"))["priority"] == "high"
    canceled = await shell.json("task", "cancel", task_id)
    assert (canceled["state"], canceled["runs"][-1]["reasonResolved"]) == ("exception", "canceled")
    assert [entry["state"] for entry in await shell.json("task", "status", task_id)] == ["exception"]
    assert (await shell.json("task", "rerun", task_id))["state"] == "pending"
    for text in ("tests", "make test", "exception/canceled", "rerun"):
        assert text in (await shell.run("task", "show", task_id)).stdout


async def test_tasks_come_from_files_and_options_win(shell: Shell) -> None:
    Path("task.json").write_text(
        json.dumps(
            {
                "taskQueueId": QUEUE,
                "deadline": {"$fromNow": "2 hours"},
                "payload": {"command": ["a", "b"]},
                "priority": "low",
                "tags": {"from": "file"},
            }
        )
    )
    task_id = slugid.nice()
    await shell.run("task", "create", "task.json", "--task-id", task_id, "--priority", "very-low")
    task = (await shell.json("task", "show", task_id))["task"]
    assert (task["priority"], task["tags"], task["payload"]) == (
        "very-low",
        {"from": "file"},
        {"command": ["a", "b"]},
    )
    assert task["metadata"]["name"] == "a b"
    result = await shell.run("task", "create", "-", "-q", QUEUE, stdin='{"payload": {}}')
    assert "pending" in result.stdout


async def test_a_dependent_task_waits_and_can_be_scheduled(shell: Shell) -> None:
    first = (await shell.json("task", "create", "-q", QUEUE, "-c", "a"))["taskId"]
    second = await shell.json("task", "create", "-q", QUEUE, "-c", "b", "--depends-on", first)
    assert second["state"] == "unscheduled"
    shown = await shell.json("task", "show", first, "--dependents")
    assert [entry["status"]["taskId"] for entry in shown["dependents"]] == [second["taskId"]]
    assert (await shell.json("task", "schedule", second["taskId"]))["state"] == "pending"
    both = await shell.run("task", "status", second["taskId"], first)
    assert both.stdout.index(second["taskId"]) < both.stdout.index(first)


@pytest.mark.parametrize(("outcome", "code"), [(1, 0), (2, 1)])
async def test_watching_ends_with_the_tasks_result(shell: Shell, outcome: int, code: int) -> None:
    stream = await shell.root.work()
    watching = asyncio.create_task(
        shell.lines("task", "create", "-q", QUEUE, "-c", "x", "--watch", code=code)
    )
    (claim,) = await stream.started()
    await stream.resolve(claim, outcome=outcome)
    seen = [status["state"] for status in await watching]
    assert seen[-1] == {1: "completed", 2: "failed"}[outcome]
    task_id = claim.status.task_id
    assert (await shell.run("task", "watch", task_id, code=code)).stdout.startswith(task_id)
    await stream.close()


async def test_refusals_are_the_servers_own_words(shell: Shell) -> None:
    unknown = slugid.nice()
    assert f"error: task {unknown}" in await shell.fails("task", "show", unknown)
    assert await shell.fails("task", "status", unknown, slugid.nice()) != ""
    said = await shell.fails("task", "create", "-q", "no slash", "-c", "x")
    assert "the queue refused the request\n  task.task_queue_id:" in said
    shell.environ |= {"TCQUEUE_CLIENT_ACCESS_TOKEN": "z" * 44}
    said = await shell.fails("task", "show", unknown)
    assert "is not signed with the access token" in said and "hint: check TCQUEUE_CLIENT_ID" in said
    shell.environ |= {"TCQUEUE_CLIENT_ACCESS_TOKEN": None, "TCQUEUE_CLIENT_ID": None}
    said = await shell.fails("task", "create", "-q", QUEUE, "-c", "x")
    assert "queue:scheduler-id:-" in said and "hint: you called without credentials" in said


# -- groups


async def test_a_graph_is_created_listed_and_canceled(shell: Shell) -> None:
    Path("graph.json").write_text(
        json.dumps(
            {
                "build": {"payload": {"command": "make"}},
                "test": {"payload": {"command": "make test"}, "dependencies": ["build"]},
            }
        )
    )
    made = await shell.json("group", "create", "graph.json", "-q", QUEUE, "-e", "CI=1")
    group_id = made["taskGroupId"]
    assert {name: status["state"] for name, status in made["tasks"].items()} == {
        "build": "pending",
        "test": "unscheduled",
    }
    listed = await shell.json("group", "list", group_id)
    assert sorted(entry["name"] for entry in listed) == ["build", "test"]
    assert (await shell.json("group", "show", group_id))["counts"] == {"pending": 1, "unscheduled": 1}
    assert (await shell.json("group", "priority", group_id, "highest"))["tasksAffected"] == 2
    assert "is not sealed" in await shell.fails("group", "cancel", group_id)
    assert "sealed" in await shell.json("group", "seal", group_id)
    assert (await shell.json("group", "cancel", group_id))["cancelledCount"] == 2
    seen = await shell.lines("group", "watch", group_id, code=1)
    assert {status["state"] for status in seen} == {"exception"}
    assert "2 exception/canceled" in (await shell.run("group", "watch", group_id, code=1)).stdout
    build = made["tasks"]["build"]["taskId"]
    payload = (await shell.json("task", "show", build))["task"]["payload"]
    assert payload == {"command": "make", "env": {"CI": "1"}}


async def test_a_graph_is_followed_to_its_end(shell: Shell) -> None:
    Path("graph.json").write_text('{"a": {"payload": {}}, "b": {"payload": {}, "dependencies": ["a"]}}')
    stream = await shell.root.work(slots=2)
    watching = asyncio.create_task(shell.run("group", "create", "graph.json", "-q", QUEUE, "--watch"))
    for _ in range(2):
        await stream.resolve(*await stream.started())
    result = await watching
    assert result.stdout.splitlines()[-1] == "2 completed"
    for line in ("a  run 0 completed on g/w1", "b  run 0 completed on g/w1"):
        assert line in result.stdout
    await stream.close()


# -- queues


async def test_queues_and_workers_are_shown_and_quarantined(shell: Shell) -> None:
    stream = await shell.root.work(slots=1)
    running, pending = await shell.root.create_many(2)
    (claim,) = await stream.started()
    await stream.round_trip()
    running, pending = sorted([running, pending], key=lambda task_id: task_id != claim.status.task_id)
    assert [entry["taskQueueId"] for entry in await shell.json("queue", "list")] == [QUEUE]
    assert await shell.json("queue", "counts", QUEUE) == {"pendingTasks": 1, "claimedTasks": 1}
    assert (await shell.run("queue", "counts", QUEUE)).stdout == "1 pending, 1 claimed\n"
    assert [entry["taskId"] for entry in await shell.json("queue", "pending", QUEUE)] == [pending]
    (claimed,) = await shell.json("queue", "claimed", QUEUE)
    assert (claimed["taskId"], claimed["workerId"]) == (running, "w1")
    assert (await shell.json("queue", "show", QUEUE))["claimedTasks"] == 1
    (worker,) = await shell.json("queue", "workers", QUEUE)
    assert (worker["workerGroup"], worker["workerId"]) == ("g", "w1")
    where = (QUEUE, "g", "w1")
    assert "gets no work until" in (await shell.run("queue", "quarantine", *where, "--for", "1h")).stdout
    assert (await stream.quarantined()).HasField("quarantine_until")
    assert len(await shell.json("queue", "workers", QUEUE, "--quarantined")) == 1
    assert "recent runs" in (await shell.run("queue", "workers", *where)).stdout
    await shell.run("queue", "quarantine", *where, "--lift")
    assert not (await stream.quarantined()).HasField("quarantine_until")
    assert "either how long with --for, or --lift" in await shell.fails("queue", "quarantine", *where)
    assert "named PROVISIONER/TYPE" in await shell.fails("queue", "workers", "x")
    await stream.close()


# -- in the database


async def test_clients_made_in_the_database_are_known_to_servers_at_once(shell: Shell) -> None:
    made = await shell.json("client", "create", "ci/me", "--scope", "queue:status:*", "--description", "d")
    own = Credentials("ci/me", made["accessToken"])
    task_id = await shell.root.create()
    shell.environ |= {"TCQUEUE_CLIENT_ID": "ci/me", "TCQUEUE_CLIENT_ACCESS_TOKEN": own.access_token}
    await shell.run("task", "status", task_id)
    assert "queue:cancel-task" in await shell.fails("task", "cancel", task_id)
    assert "disabled" in (await shell.run("client", "disable", "ci/me")).stdout
    assert "is disabled" in await _until_refused(shell, task_id)
    await shell.run("client", "enable", "ci/me")
    reset = await shell.json("client", "reset", "ci/me")
    assert reset["accessToken"] != own.access_token
    changed = await shell.json(
        "client", "update", "ci/me", "--add-scope", "b", "--remove-scope", "queue:status:*"
    )
    assert (changed["scopes"], changed["description"]) == (["b"], "d")
    ids = [entry["clientId"] for entry in await shell.json("client", "list")]
    assert ids == ["ci/me", "root", "static/tcqueue/queue"]
    assert [e["clientId"] for e in await shell.json("client", "list", "--prefix", "ci/")] == ["ci/me"]
    await shell.run("client", "delete", "ci/me", "--yes")
    assert "Client not found" in await shell.fails("client", "show", "ci/me")
    assert "changed in the settings only" in await shell.fails("client", "reset", "static/tcqueue/queue")


async def _until_refused(shell: Shell, task_id: str) -> str:
    """The change travels by NOTIFY, within milliseconds: a few calls may come before it."""
    async with asyncio.timeout(20):
        while True:
            result = await asyncio.to_thread(
                CliRunner(env=shell.environ).invoke, cli, ["task", "status", task_id]
            )
            if result.exit_code:
                return result.stderr


async def test_roles_are_changed_in_the_database(shell: Shell) -> None:
    made = await shell.json("role", "create", "team:*", "--scope", "queue:status:<..>", "--description", "d")
    assert (made["roleId"], made["scopes"]) == ("team:*", ["queue:status:<..>"])
    changed = await shell.json("role", "update", "team:*", "--add-scope", "a")
    assert sorted(changed["scopes"]) == ["a", "queue:status:<..>"]
    assert "team:*" in [entry["roleId"] for entry in await shell.json("role", "list")]
    assert "queue:status:<..>" in (await shell.run("role", "show", "team:*")).stdout
    await shell.run("role", "delete", "team:*", "--yes")
    assert "Role not found" in await shell.fails("role", "show", "team:*")


async def test_check_finds_a_running_deployment_well(shell: Shell) -> None:
    address = shell.server.address
    found = await shell.json("check", "--grpc-listen", address, "--http-listen", "")
    assert {entry["check"]: entry["state"] for entry in found} == {
        "settings": "ok",
        "database": "ok",
        "connections": "ok",
        "clock": "ok",
        "migrations": "ok",
        "encryption key": "ok",
        "tls": "ok",
        "grpc port": "ok",
        "http port": "ok",
    }
    assert f"a queue serves on {address}" in json.dumps(found)


async def test_check_finds_a_wrong_key(shell: Shell) -> None:
    from server.identity.secrets import new_key

    shell.environ |= {"TCQUEUE_ENCRYPTION_KEY": new_key()}
    found = await shell.json("check", "--grpc-listen", "", "--http-listen", "", code=1)
    assert [entry["check"] for entry in found if entry["state"] == "fail"] == ["encryption key"]


async def test_migrations_are_applied_once(shell: Shell, blank_dsn: str) -> None:
    shell.environ |= {"DATABASE_URL": blank_dsn}
    before = await shell.json("migrate", "status")
    assert before["applied"] == [] and before["pending"][0] == "0001_queue"
    assert "run `tcqueue migrate up`" in await shell.fails("client", "list")
    assert "run `tcqueue migrate up`" in await shell.fails("claim-reaper", "--once")
    assert (await shell.json("migrate", "up"))["applied"] == before["pending"]
    assert "nothing to do" in (await shell.run("migrate", "up")).stdout
    assert (await shell.json("migrate", "status"))["pending"] == []


async def test_loops_run_alone(shell: Shell) -> None:
    task_id = await shell.root.create()
    await shell.server.rows("update runs set deadline = now() - interval '1 hour'")
    await shell.server.rows("update tasks set deadline = now() - interval '1 hour'")
    assert await shell.json("deadline-reaper", "--once") == {"deadlines": 1}
    assert (await shell.json("task", "status", task_id))[0]["runs"][-1][
        "reasonResolved"
    ] == "deadline-exceeded"
    assert await shell.json("claim-reaper", "--once") == {"claim-expiry": 0}
    assert await shell.json("dependency-resolver", "--once") == {"dependencies": 0}
    retired = await shell.json("retire-tasks", "--once")
    assert set(retired) >= {"expire-tasks", "expire-task-groups", "expire-workers", "expire-events"}
