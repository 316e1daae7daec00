"""A queue whose clients are another deployment's: signatures are checked over there (auth_mode remote)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from gateway.app import HttpDoor
from server import app
from server.client.channel import open_aio_channel
from server.client.credentials import Credentials
from server.config import Settings, SettingsError
from server.identity import certificates
from tcqueue.v1.claim_pb2 import ReportCompletedRequest
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_pb2 import GetTaskStatusRequest
from tests.conformance import json_door
from tests.conformance.building import QUEUE, definition, new_id
from tests.conformance.door import Refused, refused
from tests.conformance.json_door import signature
from tests.plugins.server import Caller
from tests.scheduler.building import SCOPES, graph, submit

SIGNER = {"clientId": "static/queue-signer", "accessToken": "s" * 44, "scopes": ["*"]}


class Deployment:
    """A process with its doors."""

    def __init__(self, process: app.Process, door: json_door.HttpDoor, grpc_port: int) -> None:
        self.process = process
        self.door = door
        self.grpc_port = grpc_port

    @property
    def root_url(self) -> str:
        """Where it is."""
        return self.door.base


@asynccontextmanager
async def deployed(settings: Settings, **changes: Any) -> AsyncIterator[Deployment]:
    """A process on a database of its own, which somebody has migrated."""
    settings = dataclasses.replace(
        settings,
        grpc_listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        claim_poll_s=0.3,
        shutdown_grace_s=0.0,
        default_anonymous_role=False,
        **changes,
    )
    settings.check()
    process = await app.start(settings)
    pipelines = app.open_pipelines(process.services)
    http = HttpDoor(process.services, pipelines, reuse_port=False)
    rpc = app.GrpcDoor(settings, pipelines, reuse_port=False)
    try:
        door = json_door.HttpDoor(await http.open(), beside=None)  # type: ignore[arg-type]
        yield Deployment(process, door, await rpc.open())
        await door.close()
    finally:
        await app.close_doors(process.services, http, rpc)
        await process.close()


@pytest.fixture
def new_settings(settings: Settings, make_dsn: Callable[[], str]) -> Callable[[], Settings]:
    """Settings with a database of their own."""
    return lambda: dataclasses.replace(settings, database_url=make_dsn())


@pytest.fixture
async def elsewhere(new_settings: Callable[[], Settings]) -> AsyncIterator[Deployment]:
    """The deployment that has the clients."""
    async with deployed(new_settings(), static_clients=[SIGNER]) as deployment:
        yield deployment


@pytest.fixture
async def here(new_settings: Callable[[], Settings], elsewhere: Deployment) -> AsyncIterator[Deployment]:
    """The queue beside it."""
    async with deployed(
        new_settings(),
        auth_mode="remote",
        auth_root_url=elsewhere.root_url,
        queue_client_id=SIGNER["clientId"],
        queue_access_token=SIGNER["accessToken"],
    ) as deployment:
        yield deployment


def root_of(deployment: Deployment) -> Credentials:
    """Its root client."""
    return Credentials("root", deployment.process.services.settings.root_access_token)


async def test_a_life(elsewhere: Deployment, here: Deployment) -> None:
    """Created with a client of over there, reported with task credentials that are checked over there."""
    scheduler = Caller(here.door, root_of(elsewhere))
    task_id = new_id()
    await scheduler("CreateTask", task_id=task_id, task=definition())
    poll = {"task_queue_id": QUEUE, "worker_group": "g", "worker_id": "w"}
    (claim,) = (await scheduler("ClaimTasks", **poll)).tasks
    own = Credentials(
        claim.credentials.client_id, claim.credentials.access_token, claim.credentials.certificate
    )
    worker = Caller(here.door, own)
    await worker("ReclaimTask", task_id=task_id, run_id=0)
    with refused("InsufficientScopes"):
        await worker("CancelTask", task_id=task_id)
    channel = open_aio_channel(f"127.0.0.1:{here.grpc_port}")
    stub: Any = QueueStub(channel)
    done = await stub.ReportCompleted(
        ReportCompletedRequest(task_id=task_id, run_id=0), metadata=own.metadata()
    )
    assert done.status.task_id == task_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTaskStatus(
            GetTaskStatusRequest(task_id=task_id), metadata=root_of(elsewhere).metadata()
        )
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "another deployment" in str(caught.value.details())
    await channel.close(None)


async def test_who_is_let_in(elsewhere: Deployment, here: Deployment) -> None:
    """Clients, certificates and narrowed credentials of over there; nobody of here; changes at once."""
    admin = Caller(elsewhere.door, root_of(elsewhere))
    await admin("CreateRole", role_id="r", description="", scopes={"scopes": ["queue:list-provisioners"]})
    fields: dict[str, Any] = {"client_id": "c", "description": "", "scopes": ["assume:r"]}
    fields["expires"] = definition().deadline
    made = (await admin("CreateClient", **fields)).client
    client = Credentials("c", made.access_token)
    await Caller(here.door, client)("ListProvisioners")
    with refused("InsufficientScopes"):
        await Caller(here.door, Credentials("c", made.access_token, authorized_scopes=[]))("ListProvisioners")
    now_ms = 1000 * int(definition().created.seconds)
    short = certificates.issue(
        "c", made.access_token, scopes=["queue:list-provisioners"], start_ms=now_ms, expiry_ms=now_ms + 60_000
    )
    await Caller(here.door, Credentials("c", short.access_token, short.certificate))("ListProvisioners")
    with refused("AuthenticationFailed", "Unauthorized: Bad mac"):
        await Caller(here.door, Credentials("c", "wrong" * 6))("ListProvisioners")
    with refused("InsufficientScopes"):
        await Caller(here.door, Credentials())("ListProvisioners")
    await admin("DisableClient", client_id="c")
    with refused("AuthenticationFailed", "is disabled"):
        await Caller(here.door, client)("ListProvisioners")


async def test_hosts_that_are_none(elsewhere: Deployment, here: Deployment) -> None:
    """What the other side cannot check is the caller's fault, and no reason to try again."""
    answer = await here.door.client.get(
        "/api/queue/v1/provisioners",
        headers={"Host": "under_score.example", "Authorization": 'Hawk id="c", ts="1", nonce="n", mac="m"'},
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")


async def test_payloads_are_checked_here(elsewhere: Deployment, here: Deployment) -> None:
    """The other side never sees them."""
    path = f"/api/queue/v1/task/{new_id()}/runs/0/reclaim"
    header = signature(root_of(elsewhere), "POST", here.root_url + path, b"{}", "application/json")
    answer = await here.door.client.post(
        path, content=b"[]", headers={"Authorization": header, "Content-Type": "application/json"}
    )
    assert answer.json()["message"].startswith("Invalid payload hash:")


async def test_clients_are_not_changed_here(here: Deployment) -> None:
    """The Auth service is over there."""
    answer = await here.door.client.get("/api/auth/v1/ping")
    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})


#: Answers that grant nothing, whatever they say.
GOOD = {
    "status": "auth-success",
    "scheme": "hawk",
    "clientId": "c",
    "scopes": ["*"],
    "expires": "2999-01-01T00:00:00Z",
}
ANSWERS: dict[str, Any] = {
    "nonsense": {"status": "perhaps"},
    "a list": [],
    "a text of scopes": {**GOOD, "scopes": "*"},
    "odd scopes": {**GOOD, "scopes": [1]},
    "nobody": {**GOOD, "clientId": None},
    "long ago": {**GOOD, "expires": "2001-01-01T00:00:00Z"},
    "no end": {**GOOD, "expires": None},
    "error": {},
}


@pytest.mark.parametrize("what", ["gone", *ANSWERS])
async def test_the_other_side_fails(new_settings: Callable[[], Settings], what: str) -> None:
    """A clear 503, which clients repeat, and not a word about whoever called."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(ANSWERS[what]).encode()
        status = b"500 Oops" if what == "error" else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if what == "gone":
        server.close()
        await server.wait_closed()
    async with deployed(
        new_settings(),
        auth_mode="remote",
        auth_root_url=f"http://127.0.0.1:{port}",
        queue_client_id=SIGNER["clientId"],
        queue_access_token=SIGNER["accessToken"],
    ) as alone:
        for credentials in (Credentials("c", "x" * 44), Credentials()):
            with pytest.raises(Refused) as caught:
                await Caller(alone.door, credentials)("ListProvisioners")
            assert caught.value.code == "Unavailable"
        ping = await alone.door.client.get("/api/queue/v1/ping")
        assert ping.status_code == 200
    server.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"auth_mode": "somewhere"},
        {"auth_mode": "remote"},
        {"auth_mode": "remote", "auth_root_url": "http://x"},
        {
            "auth_mode": "remote",
            "auth_root_url": "http://x",
            "queue_client_id": "c",
            "queue_access_token": "t",
        },
    ],
    ids=str,
)
def test_settings_that_do_not_do(changes: dict[str, Any]) -> None:
    """Said at the start."""
    with pytest.raises(SettingsError, match="TCQUEUE_AUTH_MODE"):
        dataclasses.replace(Settings(), **changes).check()


async def test_scopes_of_task_graphs(elsewhere: Deployment, here: Deployment) -> None:
    """A graph's scopes come to what the roles of over there make of them, and no more."""
    admin, caller = Caller(elsewhere.door, root_of(elsewhere)), Caller(here.door, root_of(elsewhere))
    await admin("CreateRole", role_id="r", description="", scopes={"scopes": SCOPES})
    await submit(caller, graph({new_id(): []}, scopes=["assume:r"]))
    for scopes in ([], ["assume:s"], ["queue:define-task:prov/other"]):
        with refused("InputError", "scopes"):
            await caller.send("CreateTaskGraph", graph({new_id(): []}, scopes=scopes))
    await admin("CreateRole", role_id="anonymous", description="", scopes={"scopes": SCOPES})
    await submit(caller, graph({new_id(): []}, scopes=[]))
