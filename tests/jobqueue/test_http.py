"""Paths, verbs, statuses and connections of `/0.1.0` (jobqueue.md 1)."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket

import httpx
import pytest

from server.config import Settings, SettingsError
from tests.conformance.building import now
from tests.jobqueue.conftest import Served
from tests.jobqueue.old_client import NOBODY, OldClient
from tests.plugins.server import Queue

TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
REMOTE = {
    "TCQUEUE_AUTH_MODE": "remote",
    "TCQUEUE_AUTH_ROOT_URL": "http://127.0.0.1:1",
    "TCQUEUE_QUEUE_CLIENT_ID": "static/queue",
    "TCQUEUE_QUEUE_ACCESS_TOKEN": TOKEN,
}
WRONG = [
    *(("GET", path) for path in ("/job/new", "/job/{id}/cancel", "/job/{id}/claim", "/job/{id}/complete")),
    ("GET", "/job/{id}/finish"),
    ("PUT", "/job/new"),
    ("DELETE", "/job/{id}"),
    ("POST", "/job/{id}"),
    ("POST", "/jobs"),
    ("PUT", "/jobs?state=FINISHED"),
    ("HEAD", "/jobs"),
    ("OPTIONS", "/jobs"),
]


async def test_a_slash_at_the_end(old: OldClient) -> None:
    """J-005: changes nothing on any route."""
    answer = await old("POST", "/job/new/", {"version": "0.1.0"})
    job_id = answer.json()["job_id"]
    assert (await old("GET", f"/job/{job_id}/")).json()["job_id"] == job_id
    assert len((await old("GET", "/jobs/?state=PENDING")).json()) == 1
    for what in ("claim/", "complete/"):
        assert await old.change(job_id, what) == 200
    assert await old.change(await old.running(), "finish/") == 200
    assert await old.change(await old.new(), "cancel/") == 200
    assert (await old("GET", "/jobs//")).status == 404


@pytest.mark.elder("jobqueue.getJob", "jobqueue.cancelJob", "jobqueue.claimJob", "jobqueue.completeJob")
async def test_an_id_that_no_job_has(old: OldClient) -> None:
    """J-033: unknown, whatever the version of the UUID."""
    for job_id in (NOBODY, "4b7acb00-8860-11e3-9f64-606720020792", "c0ffee00-0000-4000-8000-000000000000"):
        answer = await old("GET", f"/job/{job_id}")
        assert (answer.status, answer.reason, answer.body) == (404, "NOT FOUND", b"Not found")
        assert answer.headers["content-type"] == "text/html"
        for what in ("claim", "cancel", "complete", "finish"):
            assert await old.change(job_id, what, "[1]") == 404


async def test_an_id_in_capitals(old: OldClient) -> None:
    """1: the same UUID."""
    job_id = await old.new()
    assert (await old.job(job_id.upper()))["job_id"] == job_id


@pytest.mark.parametrize(("verb", "path"), WRONG)
async def test_wrong_verbs(old: OldClient, verb: str, path: str) -> None:
    """J-034: tested before anything else, so that unknown ids make no difference."""
    for job_id in (NOBODY, await old.new()):
        answer = await old(verb, path.format(id=job_id))
        assert (answer.status, answer.reason) == (405, "METHOD NOT ALLOWED")
        assert answer.headers["content-type"] == "application/json"
        if verb != "HEAD":
            assert answer.body == b'{"reason":"Method not allowed"}'


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "/job",
            "/job/",
            "/jobs/new",
            "/nonsense",
            "/job/new/claim",
            f"/job/{NOBODY}/run",
            "/JOBS",
        ),
        *("/job/None/claim", "/job/None", "/job/123", f"/job/{NOBODY}0", f"/job/{NOBODY}/claim/now"),
        *("/job/zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz", "/job/00000000000000000000000000000000", "/job/%zz"),
        f"/job/%7B{NOBODY}%7D",
    ],
)
async def test_unknown_paths(old: OldClient, path: str) -> None:
    """J-035: not found, in HTML."""
    for verb in ("GET", "POST"):
        answer = await old(verb, path, None if verb == "GET" else {"version": "0.1.0"})
        if "zzzz-" in path and verb == "POST":
            assert answer.status == 405
        else:
            assert (answer.status, answer.body) == (404, b"Not found")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("state=FINISHED", 403),
        ("state=pending", 403),
        ("state=", 403),
        ("state=x&state=PENDING", 403),
        ("state=PENDING&state=x", 200),
        ("limit=1", 200),
        ("", 200),
        ("state=%50ENDING", 200),
    ],
)
@pytest.mark.elder("jobqueue.listJobs")
async def test_states_that_are_listed(old: OldClient, query: str, status: int) -> None:
    """J-036: two of them; only the first counts, and other parameters do not."""
    job_ids = {await old.new() for _ in range(2)}
    answer = await old("GET", f"/jobs?{query}")
    assert answer.status == status
    if status == 200:
        assert {job["job_id"] for job in answer.json()} == job_ids
    else:
        assert answer.body == b"Not found"


def _go_round(port: int) -> list[int]:
    """What the old stress client does on one connection, never reading an answer's body but the first's."""
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    connection.request("POST", "/0.1.0/job/new", json.dumps({"version": "0.1.0"}))
    job_id = json.loads(connection.getresponse().read())["job_id"]
    statuses = []
    for verb, path in (
        *(("POST", f"job/{job_id}/{what}") for what in ("claim", "claim", "complete", "complete", "cancel")),
        ("POST", "job/None/claim"),
        ("GET", "job/new"),
        ("GET", "jobs"),
        ("GET", f"job/{job_id}"),
        ("POST", "job/new"),
        ("GET", "nonsense"),
        ("GET", "jobs"),
    ):
        connection.request(verb, f"/0.1.0/{path}")
        statuses.append(connection.getresponse().status)
    connection.close()
    return statuses


async def test_unread_answers(server: Served) -> None:
    """J-037: one connection object serves a client that leaves bodies unread."""
    statuses = await asyncio.to_thread(_go_round, server.port)
    assert statuses == [200, 403, 200, 403, 403, 404, 405, 200, 200, 405, 404, 200]


def _raw(port: int, request: bytes) -> bytes:
    """All that comes until the server closes the connection, which the test does not."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as found:
        found.sendall(request)
        received = b""
        while part := found.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /0.1.0/jobs HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n",
        b"GET /0.1.0/jobs HTTP/1.0\r\n",
        b"GET /0.1.0/nonsense HTTP/1.1\r\nHost: x\r\n",
        b"POST /0.1.0/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n",
        b"GET /0.1.0/jobs?state=x HTTP/1.1\r\nHost: x\r\n",
        b"GET http://localhost/0.1.0/jobs HTTP/1.1\r\nHost: x\r\n",
    ],
)
async def test_every_answer_ends_the_connection(server: Served, head: bytes) -> None:
    """J-037: it says so, and does."""
    received = await asyncio.to_thread(_raw, server.port, head + b"\r\n")
    lines = received.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert lines.count(b"connection: close") == 1
    assert received.count(b"HTTP/1.1 ") == 1


async def test_the_rest_of_the_server_keeps_alive(server: Served) -> None:
    """J-037: only these routes close."""
    request = b"GET /api/queue/v1/ping HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /0.1.0/jobs HTTP/1.1\r\nHost: x\r\n\r\n"
    received = await asyncio.to_thread(_raw, server.port, request + request + last)
    assert received.count(b"HTTP/1.1 200 ") == 3


async def test_headers_of_success(old: OldClient) -> None:
    """J-038: what there is, and how long it is."""
    job_id = await old.new()
    for verb, path in (("GET", f"/job/{job_id}"), ("GET", "/jobs"), ("POST", f"/job/{job_id}/claim")):
        answer = await old(verb, path)
        assert (answer.status, answer.reason) == (200, "OK")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(answer.body))


async def test_pages_of_browsers(old: OldClient) -> None:
    """1: there is no authentication, so what a page has a browser send is not taken."""
    origin = {"Origin": "https://example.com", "Content-Type": "text/plain"}
    assert (await old("POST", "/job/new", {"version": "0.1.0"}, origin)).status == 403
    assert await old.jobs() == set()


# -- who may


async def _status(server: Served) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{server.port}/0.1.0/jobs")).status_code


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param("off", marks=pytest.mark.settings(job_queue="off")),
        pytest.param("open", marks=pytest.mark.settings(http_listen="0.0.0.0:0")),
        pytest.param("known", marks=pytest.mark.settings(root_url="https://tc.example.com")),
        pytest.param("proxied", marks=pytest.mark.settings(trust_proxy=True)),
    ],
)
async def test_where_it_is_not_served(server: Served, setting: str) -> None:
    """6: without a word, on loopback only; a proxy in front makes that the world."""
    assert await _status(server) == 404


@pytest.mark.settings(http_listen="0.0.0.0:0", job_queue="on")
async def test_where_a_setting_says_so(server: Served) -> None:
    """6: anywhere."""
    assert await _status(server) == 200


def test_where_it_is_served_by_itself() -> None:
    """6: addresses that lead to this machine and nowhere else."""
    for listen in ("127.0.0.1:8080", "localhost:80", "[::1]:80", ":8080", "127.1.2.3:1"):
        assert Settings(http_listen=listen).opens_job_queue, listen
    for listen in ("", "0.0.0.0:80", "[::]:80", "10.0.0.1:80", "127.example.com:80"):
        assert not Settings(http_listen=listen).opens_job_queue, listen
    assert Settings(root_url="http://localhost:8080").opens_job_queue


@pytest.mark.parametrize(
    "variables",
    [
        {"TCQUEUE_JOB_QUEUE": "yes"},
        {"TCQUEUE_JOB_QUEUE_TASK_QUEUE_ID": "jobqueue"},
        {"TCQUEUE_JOB_QUEUE_SOURCE": "here"},
        {**REMOTE, "TCQUEUE_JOB_QUEUE_CLIENT": "jobs/client"},
    ],
)
def test_settings_that_say_nothing(variables: dict[str, str]) -> None:
    """6: refused at the start."""
    with pytest.raises(SettingsError, match="TCQUEUE_JOB_QUEUE"):
        Settings.from_env(variables)
    Settings.from_env(REMOTE)


@pytest.mark.settings(
    auth_mode="remote",
    auth_root_url="http://127.0.0.1:1",
    queue_client_id="static/queue",
    queue_access_token=TOKEN,
)
async def test_beside_another_deployment(old: OldClient) -> None:
    """6: nobody has to be asked who may use the old API."""
    job_id = await old.running()
    assert await old.jobs() == {job_id}


@pytest.mark.settings(job_queue_client="jobs/client")
async def test_as_a_client_of_the_deployment(old: OldClient, modern: Queue) -> None:
    """6: callers may do what that client may, and no more."""
    assert (await old("GET", "/jobs")).status == 403
    scopes = ["queue:create-task:lowest:jobqueue/default", "queue:create-task:project:none"]
    scopes += ["queue:scheduler-id:jobqueue", "queue:pending-list:*", "queue:claimed-list:*"]
    await modern.services.clients.create(
        "jobs/client", description="", expires=now(days=1), scopes=scopes, actor="test"
    )
    job_id = await old.new()
    assert await old.jobs() == {job_id}
    assert (await old("GET", f"/job/{job_id}")).status == 403
    assert await old.change(job_id, "claim") == 403
