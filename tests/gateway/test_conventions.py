"""What every answer over HTTP has in common: errors, headers, encodings (queue.md 8, compat.md 3, 4, 7)."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import uuid
from typing import Any

import httpx
import pytest

from server.client.credentials import Credentials
from server.domain import slugid
from tests.conformance.building import QUEUE, definition
from tests.conformance.json_door import HttpDoor, signature
from tests.conformance.test_artifacts import begun
from tests.plugins.server import Caller, Queue

pytestmark = pytest.mark.doors("http")

API = "/api/queue/v1"


def _http(queue: Queue) -> HttpDoor:
    assert isinstance(queue.door, HttpDoor)
    return queue.door


async def _send(
    queue: Queue,
    verb: str,
    path: str,
    content: bytes = b"",
    headers: dict[str, str] | None = None,
    caller: Caller | None = None,
) -> httpx.Response:
    """Sends a request as root, or as another caller."""
    door = _http(queue)
    credentials = (caller or queue).credentials
    sent = dict(headers or {})
    if not credentials.anonymous:
        content_type = {name.lower(): value for name, value in sent.items()}.get("content-type", "")
        sent["Authorization"] = signature(credentials, verb, door.base + path, content, content_type)
    request = door.client.build_request(verb, door.base, content=content, headers=sent)
    request.url = httpx.URL(door.base, raw_path=path.encode())
    return await door.client.send(request)


JSON = {"Content-Type": "application/json"}


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_the_error_body(queue: Queue) -> None:
    """Q-206: exactly code, message and requestInfo; params are texts; the trailer repeats them."""
    task_id = slugid.nice()
    answer = await _send(queue, "POST", f"{API}/task/{task_id}/runs/00/claim", b"{}", JSON)
    body = answer.json()
    assert set(body) == {"code", "message", "requestInfo"}
    info = body["requestInfo"]
    assert info["method"] == "claimTask"
    assert info["params"] == {"taskId": task_id, "runId": "00"}
    assert info["payload"] == {}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", info["time"])
    assert body["message"].endswith(
        f"\n\n---\n\n* method:     claimTask\n* errorCode:  {body['code']}\n"
        f"* statusCode: {answer.status_code}\n* time:       {info['time']}"
    )


async def test_the_payload_in_an_error_has_its_defaults(queue: Queue) -> None:
    """Q-206: requestInfo.payload is the body as sent, and once it is valid, with its defaults."""
    body = {"workerGroup": "g", "workerId": "w"}
    content = json.dumps(body).encode()
    answer = await _send(
        queue, "POST", f"{API}/claim-work/{QUEUE}", content, JSON, caller=queue.having("queue:nothing")
    )
    assert _code(answer) == (403, "InsufficientScopes")
    assert answer.json()["requestInfo"]["payload"] == {**body, "tasks": 1}
    answer = await _send(queue, "POST", f"{API}/claim-work/{QUEUE}", b'{"tasks": 33}', JSON)
    assert _code(answer) == (400, "InputValidationError")
    assert answer.json()["requestInfo"]["payload"] == {"tasks": 33}


@pytest.mark.parametrize("content", [b"{", b"1", b"[1", b'"x"', b"\xff\xfe"])
@pytest.mark.parametrize("verb_and_path", ["PUT task/{id}", "POST task/{id}/cancel", "GET task/{id}"])
async def test_malformed_json(queue: Queue, verb_and_path: str, content: bytes) -> None:
    """Q-207 T-1 A-058: told before anything else, also where no body is wanted and nobody is allowed."""
    verb, _, path = verb_and_path.format(id=slugid.nice()).partition(" ")
    answer = await _send(queue, verb, f"{API}/{path}", content, JSON, caller=queue.anonymous)
    assert _code(answer) == (400, "MalformedPayload")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_another_content_type(queue: Queue, content_type: str | None) -> None:
    """Q-207 A-058: where a body is wanted, it must say that it is JSON."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    path = f"{API}/claim-work/{QUEUE}"
    answer = await _send(queue, "POST", path, b'{"workerGroup":"g","workerId":"w"}', headers)
    assert _code(answer) == (400, "MalformedPayload")
    assert f"got content-type: {content_type or 'null'}" in answer.json()["message"]


async def test_completed_without_success(queue: Queue) -> None:
    """queue.md 3.6: a body of `success: false` means failed; anything else in it is passed over."""
    for body, state in (
        ({"success": False, "x": 1}, "failed"),
        ({"success": True}, "completed"),
        ({"success": "no"}, "completed"),
    ):
        claim = await queue.running()
        path = f"{API}/task/{claim.status.task_id}/runs/0/completed"
        answer = await _send(queue, "POST", path, json.dumps(body).encode(), JSON)
        assert answer.json()["status"]["state"] == state
    answer = await _send(queue, "POST", f"{path}?success=false")
    assert _code(answer) == (400, "InvalidRequestArguments")


async def test_a_body_that_is_not_wanted(queue: Queue) -> None:
    """A-009, compat.md 4: JSON on a call without input is ignored, and so is anything else."""
    status = await queue.create()
    path = f"{API}/task/{status.task_id}/cancel"
    assert (await _send(queue, "POST", path, b'{"x": 1}', JSON)).status_code == 200
    assert (await _send(queue, "POST", path, b"{", {"Content-Type": "text/plain"})).status_code == 200
    assert (await _send(queue, "GET", f"{API}/task/{status.task_id}", b"{}", JSON)).status_code == 200


@pytest.mark.parametrize(
    "query",
    ["limit=abc", "limit=-1", "limit=", "limit=1&limit=1", "strange=1", "continuationToken=", "limit=%ff"],
)
async def test_the_query(queue: Queue, query: str) -> None:
    """Q-208 T-47: unknown, repeated and impossible keys."""
    answer = await _send(queue, "GET", f"{API}/task-queues?{query}")
    assert _code(answer) == (400, "InvalidRequestArguments")


async def test_a_query_where_none_is_known(queue: Queue) -> None:
    """Q-208 T-47."""
    answer = await _send(queue, "GET", f"{API}/provisioners/p?x=1")
    assert _code(answer) == (400, "InvalidRequestArguments")
    assert "Query-string parameter: x is not supported!" in answer.json()["message"]


async def test_every_broken_rule_is_told(queue: Queue) -> None:
    """queue.md 8.3."""
    body = {"created": "yesterday", "metadata": {"name": 1}, "strange": None, "retries": True}
    answer = await _send(queue, "PUT", f"{API}/task/{slugid.nice()}", json.dumps(body).encode(), JSON)
    assert _code(answer) == (400, "InputValidationError")
    message = answer.json()["message"]
    assert message.startswith("\nSchema Validation Failed!")
    for words in (
        "data/created",
        "data/metadata",
        "data/retries",
        "strange",
        "data/payload",
        "data/deadline",
    ):
        assert words in message


async def test_rules_beyond_the_proto_are_told_alike(queue: Queue) -> None:
    """queue.md 8.1, 8.3: a payload that is no object is a fault like others, and nothing is filled in yet."""
    body: dict[str, Any] = {"payload": [], "extra": None, "retries": 50, "metadata": {"source": "git@["}}
    answer = await _send(queue, "PUT", f"{API}/task/{slugid.nice()}", json.dumps(body).encode(), JSON)
    assert _code(answer) == (400, "InputValidationError")
    message = answer.json()["message"]
    assert message.startswith("\nSchema Validation Failed!")
    for words in ("data/payload", "data/extra", "data/retries", "data/metadata/source", "data/created"):
        assert words in message
    assert answer.json()["requestInfo"]["payload"] == body


async def test_classes_of_order(queue: Queue) -> None:
    """T-1: without scopes a malformed id is 403 where the path says what is needed, and 400 elsewhere."""
    nobody = queue.having("queue:nothing")
    assert _code(await _send(queue, "GET", f"{API}/task/odd", caller=nobody)) == (403, "InsufficientScopes")
    assert _code(await _send(queue, "GET", f"{API}/task/odd")) == (400, "InvalidRequestArguments")
    answer = await _send(queue, "POST", f"{API}/task/odd/cancel", caller=nobody)
    assert _code(answer) == (400, "InvalidRequestArguments")
    answer = await _send(queue, "GET", f"{API}/task/odd?x=1", caller=nobody)
    assert _code(answer) == (403, "InsufficientScopes")
    answer = await _send(
        queue, "POST", f"{API}/task/{slugid.nice()}/runs/0/exception", b"{}", JSON, caller=nobody
    )
    assert _code(answer) == (403, "InsufficientScopes")


async def test_the_scope_of_run_00(queue: Queue) -> None:
    """T-59: the scope is checked on the text, the run is number 0."""
    claim = await queue.running()
    path = f"{API}/task/{claim.status.task_id}/runs/00/reclaim"
    answer = await _send(queue, "POST", path, caller=queue.worker(claim.credentials))
    assert _code(answer) == (403, "InsufficientScopes")
    answer = await _send(queue, "POST", path)
    assert answer.status_code == 200
    assert answer.json()["runId"] == 0


async def test_who_is_refused_how(queue: Queue) -> None:
    """Q-209 T-2: credentials that fail are 401 and say hawk; none at all are 403."""
    wrong = Caller(queue.door, Credentials("root", "A" * 44))
    answer = await _send(queue, "GET", f"{API}/task/{slugid.nice()}", caller=wrong)
    assert _code(answer) == (401, "AuthenticationFailed")
    assert answer.headers["www-authenticate"] == "hawk"
    answer = await _send(queue, "GET", f"{API}/task/{slugid.nice()}", caller=queue.anonymous)
    assert _code(answer) == (403, "InsufficientScopes")
    assert "www-authenticate" not in answer.headers


async def test_a_public_call_looks_at_no_credentials(queue: Queue) -> None:
    """auth.md 6."""
    answer = await _http(queue).client.get(f"{API}/ping", headers={"Authorization": "Hawk nonsense"})
    assert answer.status_code == 200


async def test_a_body_other_than_the_one_signed(queue: Queue) -> None:
    """Q-210 A-002."""
    door = _http(queue)
    path = f"{API}/claim-work/{QUEUE}"
    header = signature(queue.credentials, "POST", door.base + path, b'{"tasks":1}', "application/json")
    answer = await door.client.post(
        path,
        content=b'{"tasks":2,"workerGroup":"g","workerId":"w"}',
        headers={**JSON, "Authorization": header},
    )
    assert _code(answer) == (401, "AuthenticationFailed")
    assert answer.json()["message"].startswith("Invalid payload hash:")


async def test_two_ways_to_sign(queue: Queue) -> None:
    """Q-210 A-010."""
    path = f"{API}/task/{slugid.nice()}?bewit=abc"
    answer = await _send(queue, "GET", path)
    assert _code(answer) == (401, "AuthenticationFailed")
    assert "Cannot use two authentication schemes at once" in answer.json()["message"]


@pytest.mark.parametrize(
    "path", [f"{API}/ping", f"{API}/task/odd", f"{API}/nothing", "/api/nothing/v1/x", "/v1/x"]
)
async def test_headers_of_every_answer(queue: Queue, path: str) -> None:
    """Q-211, compat.md 7: success, refusal and unknown routes alike."""
    answer = await _http(queue).client.get(path)
    for name, value in {
        "access-control-allow-origin": "*",
        "access-control-max-age": "900",
        "access-control-allow-methods": "OPTIONS,GET,HEAD,POST,PUT,DELETE,TRACE,CONNECT",
        "access-control-request-method": "*",
        "access-control-allow-headers": ",".join(
            ("X-Requested-With", "Content-Type", "Authorization", "Accept", "Origin", "Cache-Control")
        ),
        "cache-control": "no-store no-cache must-revalidate",
        "x-content-type-options": "nosniff",
        "content-type": "application/json; charset=utf-8",
    }.items():
        assert answer.headers[name] == value
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["etag"].startswith('W/"')
    assert answer.headers["vary"] == "Accept-Encoding"
    assert "strict-transport-security" not in answer.headers


async def test_trace_ids(queue: Queue) -> None:
    """Q-216: the caller's is echoed, else one is made; each request has an id of its own."""
    client = _http(queue).client
    first = await client.get(f"{API}/ping", headers={"x-taskcluster-trace-id": "my-trace"})
    assert first.headers["x-for-trace-id"] == "my-trace"
    second, third = await client.get(f"{API}/ping"), await client.get(f"{API}/ping")
    ids = [a.headers[n] for a in (second, third) for n in ("x-for-trace-id", "x-for-request-id")]
    assert len({str(uuid.UUID(text)) for text in ids}) == 4
    odd = await client.get(f"{API}/ping", headers={"x-taskcluster-trace-id": "x" * 5000})
    uuid.UUID(odd.headers["x-for-trace-id"])


@pytest.mark.parametrize("verb", ["GET", "POST", "DELETE", "PATCH"])
async def test_unknown_routes(queue: Queue, verb: str) -> None:
    """Q-212: no path, and no such verb."""
    client = _http(queue).client
    for path in (f"{API}/no/such/thing", f"{API}/tasks" if verb != "POST" else f"{API}/ping"):
        answer = await client.request(verb, path)
        assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})


async def test_monitoring(queue: Queue) -> None:
    """Q-213, under the service and at the root."""
    client = _http(queue).client
    ping = (await client.get(f"{API}/ping")).json()
    assert ping["alive"] is True
    assert isinstance(ping["uptime"], float)
    for base in (API, ""):
        assert (await client.get(f"{base}/__lbheartbeat__")).json() == {}
        assert (await client.get(f"{base}/__heartbeat__")).json() == {}
        version = (await client.get(f"{base}/__version__")).json()
        assert version.keys() == {"version", "commit", "source", "build"}
    assert (await client.get("/robots.txt")).status_code == 200
    for name in ("__lbheartbeat__", "__heartbeat__", "__version__", "robots.txt"):
        assert (await client.get(f"/{name}/", follow_redirects=False)).status_code == 200


@pytest.mark.parametrize("path", ["/no/such/page", "/api", "/v1", "/api/", "/__version__", "/__heartbeat__"])
async def test_headers_outside_the_services(queue: Queue, path: str) -> None:
    """Q-212 Q-216: what is nowhere, and the host's own monitoring, have the headers of the API, too."""
    client = _http(queue).client
    answer, unknown = await client.get(path), await client.get(f"{API}/no/such/thing")
    if not path.startswith("/__"):
        assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})
    for name, value in unknown.headers.items():
        if name == "x-for-trace-id" or name == "x-for-request-id":
            uuid.UUID(answer.headers[name])
        elif name in ("content-length", "date", "etag"):
            assert name in answer.headers
        else:
            assert answer.headers.get(name) == value, name
    traced = await client.get(path, headers={"x-taskcluster-trace-id": "my-trace"})
    assert traced.headers["x-for-trace-id"] == "my-trace"


async def test_head(queue: Queue) -> None:
    """compat.md 3: HEAD is GET without the body, signed as HEAD."""
    status = await queue.create()
    path = f"{API}/task/{status.task_id}"
    got, head = await _send(queue, "GET", path), await _send(queue, "HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == got.headers["etag"]
    assert (await _send(queue, "HEAD", f"{API}/task/odd")).status_code == 400


async def test_options(queue: Queue) -> None:
    """compat.md 3: no authentication, and the verbs there are."""
    answer = await _http(queue).client.options(f"{API}/task/{slugid.nice()}")
    assert (answer.status_code, answer.headers["allow"]) == (200, "GET, HEAD, PUT")
    assert answer.text == "GET, HEAD, PUT"
    assert (await _http(queue).client.options(f"{API}/nothing")).status_code == 404


async def test_compression(queue: Queue) -> None:
    """compat.md 4: from 1024 bytes on, for those who ask."""
    long = await queue.create(payload=json.dumps({"text": "x" * 2000}))
    path = f"{API}/task/{long.task_id}"
    asked = await _send(queue, "GET", path, headers={"Accept-Encoding": "gzip, deflate"})
    assert asked.headers["content-encoding"] == "gzip"
    plain = await _send(queue, "GET", path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == asked.json()
    refusing = await _send(queue, "GET", path, headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in refusing.headers
    short = await _http(queue).client.get(f"{API}/ping", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in short.headers


async def test_compressed_requests(queue: Queue) -> None:
    """compat.md 4: what is signed is the body after decoding."""
    door = _http(queue)
    body = json.dumps({"taskIds": []}).encode()
    path = f"{API}/tasks"
    header = signature(queue.credentials, "POST", door.base + path, body, "application/json")
    answer = await door.client.post(
        path,
        content=gzip.compress(body),
        headers={**JSON, "Authorization": header, "Content-Encoding": "gzip"},
    )
    assert answer.json() == {"tasks": []}


async def test_etags(queue: Queue) -> None:
    """traps.md: answers carry a weak ETag, and one to GET that is known is not sent again."""
    status = await queue.create()
    path = f"{API}/task/{status.task_id}"
    etag = (await _send(queue, "GET", path)).headers["etag"]
    assert etag.startswith('W/"')
    again = await _send(queue, "GET", path, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert (await _send(queue, "GET", path, headers={"If-None-Match": '"x"'})).status_code == 200
    cancel = f"{path}/cancel"
    etag = (await _send(queue, "POST", cancel)).headers["etag"]
    assert etag.startswith('W/"')
    assert (await _send(queue, "POST", cancel, headers={"If-None-Match": etag})).status_code == 200


async def test_indentation_and_plain_numbers(queue: Queue) -> None:
    """compat.md 5, traps.md: two spaces; integers as integers; nothing is null."""
    status = await queue.create(retries=0)
    answer = await _send(queue, "GET", f"{API}/task/{status.task_id}/status")
    assert answer.text.startswith('{\n  "status": {\n    "')
    assert '"retriesLeft": 0' in answer.text
    assert '"runId": 0' in answer.text
    assert "null" not in answer.text


async def test_empty_texts_that_replies_promise(queue: Queue) -> None:
    """queue.md 1.7: an artifact has a content type, an empty one, too."""
    run = await begun(queue)
    await run.create("s3", "x", content_type="")
    for place in (f"{API}/task/{run.task_id}/runs/0", f"/v1/task/{run.task_id}/runs/0"):
        (listed,) = (await _send(queue, "GET", f"{place}/artifacts")).json()["artifacts"]
        assert listed["contentType"] == ""
    info = await _send(queue, "GET", f"{API}/task/{run.task_id}/artifact-info/x")
    assert info.json()["contentType"] == ""


async def test_actions_of_older_releases(queue: Queue) -> None:
    """queue.md 1.7: of provisioners always, of worker types and workers in replies about one."""
    of_type = f"{API}/provisioners/prov/worker-types/work"
    worker = f"{of_type}/workers/group/worker"
    until = json.dumps({"quarantineUntil": "2020-01-01T00:00:00Z"}).encode()
    for verb, path, content in (
        ("PUT", f"{of_type}/group/worker", b"{}"),
        ("PUT", worker, until),
        ("GET", worker, b""),
        ("PUT", of_type, b"{}"),
        ("GET", of_type, b""),
        ("PUT", f"{API}/provisioners/prov", b"{}"),
        ("GET", f"{API}/provisioners/prov", b""),
    ):
        answer = await _send(queue, verb, path, content, JSON if content else None)
        assert answer.json()["actions"] == [], path
    for path, name, has in (
        (f"{API}/provisioners", "provisioners", True),
        (f"{API}/provisioners/prov/worker-types", "workerTypes", False),
        (f"{of_type}/workers", "workers", False),
        (f"{API}/task-queues", "taskQueues", False),
    ):
        (listed,) = (await _send(queue, "GET", path)).json()[name]
        assert ("actions" in listed) == has, path


@pytest.mark.parametrize("number", ["1", "1.0", "1.50", "1e3", "-0", "123456789012345678901234567890", "0.1"])
async def test_payloads_value_for_value(queue: Queue, number: str) -> None:
    """compat.md 4: numbers come back digit for digit."""
    task_id = slugid.nice()
    task = json.loads(_definition_json())
    content = (
        json.dumps(task).replace('"PAYLOAD"', f'{{"n": {number}, "t": "\\u00e9é\\ud83d\\ude00"}}').encode()
    )
    answer = await _send(queue, "PUT", f"{API}/task/{task_id}", content, JSON)
    assert answer.status_code == 200, answer.text
    got = await _send(queue, "GET", f"{API}/task/{task_id}")
    assert re.search(rf'"n": ?{re.escape(number)},', got.text)
    assert got.json()["payload"]["t"] == "éé😀"


def _definition_json() -> str:
    """A task's JSON with a place for its payload."""
    from server.codec import writing

    value = json.loads(writing.to_bytes(writing.to_value(definition()), indent=False))
    return json.dumps({**value, "payload": "PAYLOAD"})


async def test_malformed_percent_encoding(queue: Queue) -> None:
    """compat.md 3."""
    for text in ("%zz", "%f", "%ff"):
        answer = await _send(queue, "GET", f"{API}/task/{text}")
        assert _code(answer) == (400, "InvalidRequestArguments")


async def test_slashes_in_both_spellings(queue: Queue) -> None:
    """Q-198 T-39, traps.md: the signature covers what was sent."""
    await queue.claim()
    for path in (f"pending/{QUEUE}", f"pending/{QUEUE.replace('/', '%2F')}"):
        assert (await _send(queue, "GET", f"{API}/{path}")).status_code == 200
    assert (await _send(queue, "GET", f"{API}/task-queues/{QUEUE.replace('/', '%2F')}")).status_code == 200
    assert (await _send(queue, "GET", f"{API}/task-queues/{QUEUE}")).status_code == 404
    answer = await _send(
        queue, "POST", f"{API}/claim-work/{QUEUE}/", b'{"workerGroup":"g","workerId":"w"}', JSON
    )
    assert _code(answer) == (400, "InvalidRequestArguments")


async def test_the_alias_of_old(queue: Queue) -> None:
    """compat.md 1: `/v1` means the queue, and the signature covers the path that was used."""
    status = await queue.create()
    answer = await _send(queue, "GET", f"/v1/task/{status.task_id}/status")
    assert answer.json()["status"]["taskId"] == status.task_id


@pytest.mark.settings(trust_proxy=True)
async def test_behind_a_proxy(queue: Queue) -> None:
    """auth.md 1.3: what a trusted proxy says of the port is what was signed."""
    door = _http(queue)
    path = f"{API}/task/{slugid.nice()}/status"
    host = door.base.removeprefix("http://").partition(":")[0]
    header = signature(queue.credentials, "GET", f"https://{host}{path}", b"", "")
    forwarded = {"Authorization": header, "X-Forwarded-Proto": "https"}
    assert _code(await door.client.get(path, headers=forwarded)) == (404, "ResourceNotFound")
    assert _code(await door.client.get(path, headers={"Authorization": header})) == (
        401,
        "AuthenticationFailed",
    )


@pytest.mark.settings(claim_poll_s=30.0)
async def test_a_long_poll_whose_client_hangs_up(queue: Queue) -> None:
    """compat.md 6: it claims nothing any more."""
    door = _http(queue)
    body = b'{"workerGroup":"g","workerId":"w"}'
    path = f"{API}/claim-work/{QUEUE}"
    header = signature(queue.credentials, "POST", door.base + path, body, "application/json")
    host, _, port = door.base.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nAuthorization: {header}\r\n\r\n".encode()
        + body
    )
    dispatcher: Any = queue.services.dispatcher
    async with asyncio.timeout(10):
        while not dispatcher._polls:
            await asyncio.sleep(0.01)
        writer.close()
        while dispatcher._polls:
            await asyncio.sleep(0.01)
    status = await queue.create()
    assert (await queue.status(status.task_id)).runs[0].worker_id == ""
    del reader


async def test_headers_beyond_measure(queue: Queue) -> None:
    """compat.md 10: long Authorization headers pass, endless ones do not."""
    client = _http(queue).client
    answer = await client.get(f"{API}/ping", headers={"x-long": "x" * 16_000})
    assert answer.status_code == 200
    answer = await client.get(f"{API}/ping", headers={"x-long": "x" * 70_000})
    assert answer.status_code == 431


async def test_bodies_beyond_measure(queue: Queue) -> None:
    """queue.md 8.2: 413, in the API's form."""
    answer = await _send(queue, "POST", f"{API}/tasks", b" " * (10 * 1024 * 1024 + 1), JSON)
    assert _code(answer) == (413, "InputTooLarge")


async def test_what_is_published(queue: Queue) -> None:
    """compat.md 1, 2: references and schemas for everybody, from anywhere."""
    client = _http(queue).client
    manifest = (await client.get("/references/manifest.json")).json()
    assert "/references/queue/v1/api.json" in manifest["references"]
    for path in [*manifest["references"], "/schemas/queue/v1/task.json", "/openapi.json"]:
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert answer.headers["content-type"].startswith("application/json")
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "createTask" in page.text


async def test_a_refusal_names_the_schema(queue: Queue) -> None:
    """queue.md 8.3."""
    answer = await _send(queue, "PUT", f"{API}/task/{slugid.nice()}", b"{}", JSON)
    assert "/schemas/queue/v1/create-task-request.json#" in answer.json()["message"]


async def test_tags_that_are_no_texts(queue: Queue) -> None:
    """Q-023: a tag's value is a text."""
    task = {**json.loads(_definition_json()), "payload": {}, "tags": {"n": 1}}
    answer = await _send(queue, "PUT", f"{API}/task/{slugid.nice()}", json.dumps(task).encode(), JSON)
    assert _code(answer) == (400, "InputValidationError")
    assert "data/tags/n" in answer.json()["message"]


async def test_pages(queue: Queue) -> None:
    """Q-214 Q-215: a limit beyond all measure is the largest; a strange token is 400, or the beginning."""
    for number in range(3):
        await queue.claim(queue_id=f"prov/q{number}")
    path = f"{API}/task-queues"
    everything = await _send(queue, "GET", f"{path}?limit=99999999999999999999")
    assert len(everything.json()["taskQueues"]) == 3
    full = (await _send(queue, "GET", f"{path}?limit=3")).json()
    assert "continuationToken" not in full
    first = (await _send(queue, "GET", f"{path}?limit=2")).json()
    rest = await _send(queue, "GET", f"{path}?continuationToken={first['continuationToken']}")
    assert len(rest.json()["taskQueues"]) == 1
    assert _code(await _send(queue, "GET", f"{path}?continuationToken=%25%25")) == (400, "InputError")
    garbage = await _send(queue, "GET", f"{API}/task-queues/prov%2Fq0/pending?continuationToken=%25%25")
    assert (garbage.status_code, garbage.json()) == (200, {"tasks": []})


@pytest.mark.parametrize("path", [f"{API}/task-queues", "/v1/task/nonsense", f"{API}/task/nonsense"])
async def test_half_of_a_surrogate_pair_comes_back(queue: Queue, path: str) -> None:
    """What an error repeats of a request may be text that is no Unicode."""
    verb = "GET" if path.endswith("queues") else "PUT"
    door = _http(queue)
    answer = await door.client.request(verb, path, content=b'{"\\ud800": "\\udfff"}', headers=JSON)
    assert answer.status_code in (400, 403)
    assert answer.json()["requestInfo"]["payload"] == {"\ud800": "\udfff"}
