"""Object artifacts that another deployment's object service keeps (queue.md 6.1, 7.2, 7.6)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.client.credentials import Credentials
from server.config import Settings
from server.domain import slugid
from tcqueue.v1.claim_pb2 import TaskCredentials
from tcqueue.v1.object_pb2 import AcceptDownloadMethods, ProposedUploadMethods
from tests.conformance.building import at
from tests.conformance.door import refused
from tests.conformance.json_door import HttpDoor
from tests.conformance.test_artifacts import NAME, begun
from tests.plugins.deployment import TOKEN
from tests.plugins.server import Caller, Queue

DATA = b"kept elsewhere"
INLINE = ProposedUploadMethods(
    data_inline={"content_type": "text/plain", "object_data": "a2VwdCBlbHNld2hlcmU="}  # type: ignore[arg-type]
)
PROJECT = "a/project"


class Elsewhere:
    """The other deployment, as its root sees it or who has credentials from the queue."""

    def __init__(self, door: HttpDoor) -> None:
        self.door = door
        self.root = Caller(door, Credentials("root", TOKEN))

    def having(self, credentials: TaskCredentials) -> Caller:
        """A caller with credentials that the queue gave out."""
        return Caller(
            self.door, Credentials(credentials.client_id, credentials.access_token, credentials.certificate)
        )


@pytest.fixture
def object_root_url(root_url: str) -> str:
    """Where the object service is: at a server of its own."""
    return root_url


@pytest.fixture
def server_settings(server_settings: Settings, object_root_url: str) -> Settings:
    """The queue's, which keeps objects there and signs as root of that place."""
    return dataclasses.replace(
        server_settings,
        object_root_url=object_root_url,
        object_client_id="root",
        object_access_token=TOKEN,
    )


@pytest.fixture
async def elsewhere(root_url: str, queue: Queue) -> AsyncIterator[Elsewhere]:
    """The other deployment."""
    port = urlsplit(root_url).port
    assert port is not None
    door = HttpDoor(port, queue.door)
    yield Elsewhere(door)
    await door.close()


def scopes_of(credentials: TaskCredentials) -> list[str]:
    """What credentials may do, as their certificate says."""
    found: list[str] = json.loads(credentials.certificate)["scopes"]
    return found


async def test_an_artifact_kept_elsewhere(queue: Queue, elsewhere: Elsewhere, root_url: str) -> None:
    """Q-240 Q-241: opened, looked up and read there; each credentials do one thing there."""
    run = await begun(queue, project_id=PROJECT)
    made = await run.create("object", expires=at(minutes=50))
    name = f"t/{run.task_id}/0/{NAME}"
    assert (made.name, made.project_id) == (name, PROJECT)
    assert scopes_of(made.credentials) == [f"object:upload:{PROJECT}:{name}"]
    upload = {"name": name, "project_id": PROJECT, "upload_id": made.upload_id}
    opening = {**upload, "expires": made.expires, "proposed_upload_methods": INLINE}
    # The upload is open there, by this id only, and nothing is known of it here.
    with refused("RequestConflict"):
        await elsewhere.root("CreateUpload", **{**opening, "upload_id": slugid.v4()})
    with refused("ResourceNotFound"):
        await queue("FinishUpload", **upload)
    uploader = elsewhere.having(made.credentials)
    await uploader("CreateUpload", **opening)
    with refused("InputError", "Object storing artifact data does not exist"):
        await run.finish(made.upload_id)
    with refused("ResourceNotFound", "Artifact not found"):
        await run.get()
    await uploader("FinishUpload", **upload)
    with refused("InsufficientScopes"):
        await uploader("GetObject", name=name)
    await run.finish(made.upload_id)
    assert await queue.sql("select from objects") == []

    content = await run.content()
    assert content.name == name
    assert scopes_of(content.credentials) == [f"object:download:{name}"]
    reader = elsewhere.having(content.credentials)
    assert (await reader("GetObject", name=name)).project_id == PROJECT
    with refused("InsufficientScopes"):
        await reader("FinishUpload", **upload)
    simple = AcceptDownloadMethods(simple=True)
    there = (await reader("StartDownload", name=name, accept_download_methods=simple)).url
    for found in (await run.get(), await queue("GetLatestArtifact", task_id=run.task_id, name=NAME)):
        assert found.url.startswith(f"{root_url}/")
        assert found.url.partition("?")[0] == there.partition("?")[0]
        async with httpx.AsyncClient() as client:
            assert (await client.get(found.url)).content == DATA


async def test_repeats_elsewhere(queue: Queue, elsewhere: Elsewhere) -> None:
    """Q-240: a repeat goes on with the upload there, whether it is finished or not."""
    run = await begun(queue)
    expires = at(minutes=50)
    made = await run.create("object", expires=expires)
    again = await run.create("object", expires=expires)
    assert again.upload_id == made.upload_id
    upload = {"name": made.name, "project_id": "none", "upload_id": made.upload_id}
    await elsewhere.having(again.credentials)("FinishUpload", **upload)
    assert (await run.create("object", expires=expires)).upload_id == made.upload_id
    await run.finish(made.upload_id)
    assert (await run.info()).name == NAME


async def test_a_name_that_is_taken_elsewhere(queue: Queue, elsewhere: Elsewhere) -> None:
    """Q-240: whoever has it, the artifact is refused."""
    run = await begun(queue)
    await elsewhere.root(
        "CreateUpload",
        name=f"t/{run.task_id}/0/{NAME}",
        project_id="none",
        upload_id=slugid.v4(),
        expires=at(minutes=50),
        proposed_upload_methods=INLINE,
    )
    with refused("RequestConflict"):
        await run.create("object")


async def test_strange_names_elsewhere(queue: Queue, elsewhere: Elsewhere) -> None:
    """Q-240 Q-241: names go there as they are."""
    run = await begun(queue)
    for name in ("a b%2F?#c", "a//b/", "a\\b/../c"):
        made = await run.create("object", name)
        assert scopes_of(made.credentials) == [f"object:upload:none:t/{run.task_id}/0/{name}"]
        upload = {"name": made.name, "project_id": "none", "upload_id": made.upload_id}
        await elsewhere.having(made.credentials)("FinishUpload", **upload)
        await run.finish(made.upload_id, name)
        content = await run.content(name)
        assert scopes_of(content.credentials) == [f"object:download:t/{run.task_id}/0/{name}"]
        found = await elsewhere.having(content.credentials)("GetObject", name=made.name)
        assert found.project_id == "none"


# -- an object service that says what the test wants


class Answers(ThreadingHTTPServer):
    """Answers each kind of request as the test says, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        assert isinstance(self.server, Answers)
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        kind = self.path.removeprefix("/api/object/v1/").partition("/")[0]
        self.server.asked.append((self.command, self.path, json.loads(body or b"null")))
        status, value = self.server.replies.get(kind, (500, {"message": "unexpected"}))
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def answers() -> Iterator[Answers]:
    """Such a service."""
    server = Answers()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestAnswers:
    """What the queue makes of them."""

    @pytest.fixture
    def object_root_url(self, answers: Answers) -> str:
        """Where the object service is."""
        return f"http://127.0.0.1:{answers.server_port}"

    async def test_what_is_asked(self, queue: Queue, answers: Answers) -> None:
        """Q-240: the upload, whether it is finished, and its URL, which is passed on unchanged."""
        run = await begun(queue)
        url = "https://Example.com:443/%7e/a%2fb//../c?x=+%20&x=%2B&sig=a/b==#frag"
        answers.replies = {
            "upload": (200, {}),
            "metadata": (200, {"projectId": "none"}),
            "start-download": (200, {"method": "simple", "url": url}),
        }
        made = await run.create("object", "a b/c")
        await run.finish(made.upload_id, "a b/c")
        assert (await run.get("a b/c")).url == url
        path = f"t%2F{run.task_id}%2F0%2Fa%20b%2Fc"
        opened, looked, started = answers.asked
        assert opened[:2] == ("PUT", f"/api/object/v1/upload/{path}")
        assert opened[2].pop("expires")
        assert opened[2] == {"projectId": "none", "uploadId": made.upload_id, "proposedUploadMethods": {}}
        assert looked == ("GET", f"/api/object/v1/metadata/{path}", None)
        simple = {"acceptDownloadMethods": {"simple": True}}
        assert started == ("PUT", f"/api/object/v1/start-download/{path}", simple)

    @pytest.mark.parametrize("status", [404, 406])
    async def test_no_object_to_download(self, queue: Queue, answers: Answers, status: int) -> None:
        """Q-240: unknown there, or without a plain URL."""
        run = await begun(queue)
        answers.replies = {
            "upload": (200, {}),
            "metadata": (200, {}),
            "start-download": (status, {"message": "no"}),
        }
        made = await run.create("object")
        await run.finish(made.upload_id)
        with refused("ResourceNotFound", "Object does not exist."):
            await run.get()

    async def test_trouble(self, queue: Queue, answers: Answers) -> None:
        """Q-240: what goes wrong there is no fault of the caller, and the call can be repeated."""
        run = await begun(queue)
        expires = at(minutes=30)
        trouble = (500, {"message": "out of order"})
        answers.replies = {"upload": trouble}
        with refused("Unavailable|InternalServerError"):
            await run.create("object", expires=expires)
        answers.replies = {"upload": (200, {}), "metadata": trouble}
        made = await run.create("object", expires=expires)
        with refused("Unavailable|InternalServerError"):
            await run.finish(made.upload_id)
        answers.replies = {"metadata": (200, {}), "start-download": trouble}
        await run.finish(made.upload_id)
        with refused("Unavailable|InternalServerError"):
            await run.get()
        assert len({body["uploadId"] for _, path, body in answers.asked if "/upload/" in path}) == 1
