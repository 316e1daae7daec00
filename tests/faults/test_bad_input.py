"""Rubbish of every kind gets a clear status, and the server serves on (issue: the main job)."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest

from server.domain import slugid
from server.identity import tokens
from tcqueue.v1.claim_pb2 import ClaimTasksRequest, ClaimWorkRequest
from tcqueue.v1.task_group_pb2 import ListTaskGroupRequest
from tcqueue.v1.task_pb2 import (
    CreateTaskRequest,
    CreateTasksRequest,
    GetTaskRequest,
    GetTaskStatusRequest,
    NewTask,
    TaskDefinition,
    TaskMetadata,
)
from tcqueue.v1.task_queue_pb2 import DeclareWorkerTypeRequest
from tcqueue.v1.worker_pb2 import QuarantineWorkerRequest
from tests.streams.harness import (
    COMPLETED,
    PATIENCE_S,
    QUEUE,
    Client,
    Cluster,
    Failure,
    Instance,
    Stream,
    bearer,
    definition,
    failure_of,
    key_of,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(autouse=True)
async def serves_on(root: Client) -> AsyncIterator[None]:
    """After whatever the test did, a task still lives its whole life."""
    yield
    stream = await root.work("last", queue="prov/after")
    task_id = await root.create(task_queue_id="prov/after")
    (claim,) = await stream.started()
    assert claim.status.task_id == task_id
    await stream.resolve(claim)
    assert not (await stream.resolved()).HasField("error")
    await stream.close()


async def raw(client: Client, method: str, data: bytes, **options: Any) -> Failure:
    """How the server refuses these bytes as the request of a method."""
    call = client.channel.unary_unary(f"/tcqueue.v1.Queue/{method}")(
        data, metadata=client.metadata, timeout=PATIENCE_S, **options
    )
    return await failure_of(call)


async def refusal(client: Client, method: str, request: Any) -> Failure:
    """How the server refuses this request."""
    with pytest.raises(Failure) as refused:
        await client(method, request)
    return refused.value


# Bytes that are no message


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 40,
        b"\x0a\x7fshort",  # a string longer than what is there
        b"\x0a\x02\xc3\x28",  # no UTF-8
        b"\x0b" * 5000,  # groups nested without end
        b"\x00",  # field number 0
        os.urandom(3000) + b"\xff",
    ],
    ids=["ones", "cut off", "no utf-8", "nested", "field 0", "random"],
)
@pytest.mark.parametrize("method", ["CreateTask", "GetTask", "ClaimTasks"])
async def test_bytes_that_are_no_message(root: Client, method: str, data: bytes) -> None:
    failure = await raw(root, method, data)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_PAYLOAD")


@pytest.mark.parametrize("opened", [False, True])
async def test_bytes_that_are_no_message_on_a_stream(root: Client, opened: bool) -> None:
    call = root.channel.stream_stream("/tcqueue.v1.Queue/ClaimWork")(metadata=root.metadata)
    if opened:
        opening = ClaimWorkRequest()
        opening.open.task_queue_id, opening.open.worker_group, opening.open.worker_id = QUEUE, "g", "w"
        await call.write(opening.SerializeToString())
    await call.write(b"\xff" * 40)
    failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_PAYLOAD")


async def test_bytes_that_are_no_message_for_a_watch(root: Client) -> None:
    call = root.channel.unary_stream("/tcqueue.v1.Queue/WatchTask")(b"\xff", metadata=root.metadata)
    failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_PAYLOAD")


async def test_unknown_fields(root: Client) -> None:
    request = GetTaskRequest(task_id=slugid.nice()).SerializeToString()
    failure = await raw(root, "GetTask", request + b"\xf8\x7f\x01")
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")
    nested = CreateTaskRequest(task_id=slugid.nice(), task=definition())
    nested.task.metadata.MergeFromString(b"\xf8\x7f\x01")
    failure = await refusal(root, "CreateTask", nested)
    assert failure.reason == "INPUT_VALIDATION_ERROR"
    assert "does not know" in failure.message


async def test_an_unknown_method(root: Client) -> None:
    assert (await raw(root, "DropAllTables", b"")).code == grpc.StatusCode.UNIMPLEMENTED


async def test_two_requests_where_one_belongs(root: Client) -> None:
    call = root.channel.stream_unary("/tcqueue.v1.Queue/Ping")(metadata=root.metadata, timeout=PATIENCE_S)
    for _ in range(2):
        try:
            await call.write(b"")
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            break
    await failure_of_any(call)


async def failure_of_any(call: Any) -> grpc.StatusCode:
    """The status, whatever it is, as long as there is one."""
    async with asyncio.timeout(PATIENCE_S):
        code: grpc.StatusCode = await call.code()
    return code


# Sizes


async def test_a_message_beyond_the_limit(cluster: Cluster) -> None:
    server = await cluster.start(max_message_bytes=200_000)
    root = await cluster.client(server.address)
    task = definition(payload=json.dumps({"x": "y" * 300_000}))
    failure = await refusal(root, "CreateTask", CreateTaskRequest(task_id=slugid.nice(), task=task))
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    stream = await root.work()
    task_id = await root.create(payload=json.dumps({"x": "y" * 150_000}))
    assert (await stream.claim()).status.task_id == task_id


async def test_metadata_of_a_megabyte(server: Instance, cluster: Cluster) -> None:
    metadata = (*cluster.metadata, ("x-more", "m" * 1_000_000))
    client = await cluster.client(server.address, metadata)
    failure = await refusal(client, "GetTask", GetTaskRequest(task_id=slugid.nice()))
    assert failure.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


async def test_too_many_tasks_at_once(root: Client) -> None:
    tasks = [NewTask(task_id="x")] * 20_001
    failure = await refusal(root, "CreateTasks", CreateTasksRequest(tasks=tasks))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT


# Ids


async def test_what_is_wrong_with_one_task_of_many(root: Client) -> None:
    """The message and the fields to blame say which one."""
    tasks = [NewTask(task_id=slugid.nice(), task=definition()) for _ in range(3)]
    tasks[1].task.payload = "[]"
    failure = await refusal(root, "CreateTasks", CreateTasksRequest(tasks=tasks))
    assert failure.reason == "INPUT_VALIDATION_ERROR"
    assert failure.message == "tasks[1]: task.payload must be a JSON object"
    assert failure.fields == ["tasks[1].task.payload"]
    tasks[1].task.payload = "{}"
    tasks[2].task.dependencies.append(slugid.nice())
    failure = await refusal(root, "CreateTasks", CreateTasksRequest(tasks=tasks))
    assert failure.reason == "INPUT_ERROR"
    assert failure.message.startswith("tasks[2]: dependencies of task")
    assert failure.fields == ["tasks[2].task"]


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "short",
        "AAAAAAAAQAAAAAAAAAAAAA",
        "ABCDEFGHRJCLMNOPQRSTUA\n",
        "../../etc/passwd",
        "é" * 22,
        "\0" * 22,
    ],
)
@pytest.mark.parametrize("method", ["GetTask", "GetTaskStatus"])
async def test_malformed_task_ids(root: Client, method: str, task_id: str) -> None:
    request = {"GetTask": GetTaskRequest, "GetTaskStatus": GetTaskStatusRequest}[method](task_id=task_id)
    failure = await refusal(root, method, request)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST_ARGUMENTS",
    )
    assert "task_id" in failure.message


@pytest.mark.parametrize("queue", ["", "a", "a/b/c", "prov/Upper", "prov/x\n", "p" * 39 + "/x", "\0/x"])
async def test_malformed_queue_ids(root: Client, queue: str) -> None:
    """Q-116."""
    request = ClaimTasksRequest(task_queue_id=queue, worker_group="g", worker_id="w")
    failure = await refusal(root, "ClaimTasks", request)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST_ARGUMENTS",
    )
    stream = await root.work(queue=queue)
    assert (await stream.end()).code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_malformed_run_on_a_stream(root: Client) -> None:
    stream = await root.work()
    await stream.accept_runs(("x", 0))
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")


async def test_an_empty_message_on_a_stream(root: Client) -> None:
    stream = Stream(root)
    await stream.send(ClaimWorkRequest())
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")


@pytest.mark.parametrize("kind", ["accept", "resolve"])
async def test_a_list_of_nothing_on_a_stream(root: Client, kind: str) -> None:
    stream = await root.work()
    nothing: dict[str, Any] = {kind: {}}
    await stream.send(ClaimWorkRequest(**nothing))
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")


@pytest.mark.parametrize("kind", ["accept", "resolve", "slots", "pong"])
async def test_unknown_fields_on_a_stream(root: Client, kind: str) -> None:
    """Also where the rest of a message is spared its examination."""
    stream = await root.work()
    await root.create()
    task_id, run_id = key_of((await stream.started())[0])
    run = {"task_id": task_id, "run_id": run_id}
    bodies: dict[str, Any] = {
        "accept": {"runs": [run]},
        "resolve": {"resolutions": [{**run, "outcome": COMPLETED}]},
        "slots": {"slots": 1},
        "pong": {"nonce": 1},
    }
    chosen: dict[str, Any] = {kind: bodies[kind]}
    message = ClaimWorkRequest(**chosen)
    getattr(message, kind).MergeFromString(b"\xf8\x7f\x01")
    await stream.send(message)
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")
    assert "does not know" in failure.message


# Credentials


def _tokens(root_token: str) -> dict[str, str]:
    now = int(time.time())
    good = tokens.mint("root", root_token)
    head, body, signature = good.split(".")
    return {
        "expired": jwt.encode({"iss": "root", "exp": now - 3600}, root_token, algorithm="HS256"),
        "no end": jwt.encode({"iss": "root"}, root_token, algorithm="HS256"),
        "far end": jwt.encode({"iss": "root", "exp": now + 10**9}, root_token, algorithm="HS256"),
        "wrong key": tokens.mint("root", slugid.v4() + slugid.v4()),
        "nobody": tokens.mint("no-such-client", root_token),
        "none": jwt.encode({"iss": "root", "exp": now + 600}, "", algorithm="none"),
        "none with the signature": f"{jwt.encode({'iss': 'root', 'exp': now + 600}, '', 'none')}{signature}",
        "other algorithm": jwt.encode({"iss": "root", "exp": now + 600}, root_token * 2, algorithm="HS512"),
        "garbage": "garbage",
        "dots": "...",
        "three parts": "a.b.c",
        "cut off": good[:-5],
        "body changed": f"{head}.{body[:-4]}AAAA.{signature}",
        "too long": good + "A" * 20_000,
        "issuer no text": jwt.encode({"exp": now + 600, "sub": "root"}, root_token, algorithm="HS256"),
        "certificate no object": tokens.mint("root", root_token, certificate={"version": 9}),
    }


@pytest.mark.parametrize("kind", sorted(_tokens("k" * 44)))
async def test_tokens_that_do_not_hold(cluster: Cluster, server: Instance, kind: str) -> None:
    client = await cluster.client(server.address, bearer(_tokens(cluster.root_token)[kind]))
    failure = await refusal(client, "CreateTask", CreateTaskRequest(task_id=slugid.nice(), task=definition()))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_FAILED")
    assert cluster.root_token not in failure.message
    stream = await client.work()
    assert (await stream.end()).code == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("header", ["Basic cm9vdDpyb290", "Bearer", "Bearer ", "", "Hawk id=x", "token"])
async def test_another_scheme(cluster: Cluster, server: Instance, header: str) -> None:
    client = await cluster.client(server.address, (("authorization", header),))
    failure = await refusal(client, "CreateTask", CreateTaskRequest(task_id=slugid.nice(), task=definition()))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_FAILED")


# Texts


async def test_nul_and_other_odd_characters_come_back_as_they_went(root: Client) -> None:
    odd = "a\0b\x1f\u2028\U0001f600"
    stream = await root.work()
    task_id = await root.create(
        payload='{"x": "\\u0000\\ud83d\\ude00", "\\u0000": 1}',
        extra='{"\\u0000": "\\u0000"}',
        tags={odd: odd},
        metadata=TaskMetadata(name=odd, description=odd, owner="me@example.com", source="https://x.example/"),
    )
    claim = await stream.claim()
    assert claim.task.payload == '{"x": "\\u0000\\ud83d\\ude00", "\\u0000": 1}'
    assert claim.task.metadata.name == odd
    assert dict(claim.task.tags) == {odd: odd}
    await stream.accept(claim)
    await stream.resolve(claim)
    assert not (await stream.resolved()).HasField("error")
    response = await root("GetTask", GetTaskRequest(task_id=task_id))
    assert response.task.extra == '{"\\u0000": "\\u0000"}'


async def test_nul_where_it_cannot_be_stored(root: Client) -> None:
    stream = await root.work(queue="prov/nul")
    await stream.round_trip()
    quarantine = QuarantineWorkerRequest(
        provisioner_id="prov", worker_type="nul", worker_group="g", worker_id="w1", quarantine_info="a\0b"
    )
    quarantine.quarantine_until.FromSeconds(int(time.time()) - 10)
    worker_type = DeclareWorkerTypeRequest(provisioner_id="prov", worker_type="nul", description="a\0b")
    worker_type.expires.FromSeconds(int(time.time()) + 1000)
    group = ListTaskGroupRequest(task_group_id=slugid.nice(), continuation_token="\0")
    for method, request in (
        ("QuarantineWorker", quarantine),
        ("DeclareWorkerType", worker_type),
        ("ListTaskGroup", group),
    ):
        failure = await refusal(root, method, request)
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT, (method, failure)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{",
        "[]",
        "null",
        "1",
        '"text"',
        '{"a": NaN}',
        '{"a": "\0"}',
        '{"a": "\\ud800"}',
        "{'a': 1}",
        '{"a": 1} {"b": 2}',
        "[" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
    ids=lambda text: repr(text[:16]),
)
async def test_payloads_that_are_no_json_object(root: Client, payload: str) -> None:
    task = definition(payload=payload)
    failure = await refusal(root, "CreateTask", CreateTaskRequest(task_id=slugid.nice(), task=task))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_VALIDATION_ERROR")
    assert "payload" in failure.message


@pytest.mark.parametrize("depth", [100, 500, 1000])
async def test_deep_nesting_has_a_clear_end(root: Client, depth: int) -> None:
    """What is taken is taken again; what is too deep is refused. Never an internal error."""
    task_id = slugid.nice()
    task = definition(payload='{"a":' * depth + "1" + "}" * depth)
    again = TaskDefinition.FromString(task.SerializeToString())
    again.payload = '{ "a":' * depth + "1" + "}" * depth
    for attempt in (task, again):
        try:
            await root("CreateTask", CreateTaskRequest(task_id=task_id, task=attempt))
        except Failure as e:
            assert depth > 900
            assert e.reason in ("INPUT_VALIDATION_ERROR", "REQUEST_CONFLICT"), e


@pytest.mark.parametrize(
    ("field", "seconds", "nanos"),
    [
        ("created", 10**15, 0),
        ("deadline", -(10**15), 0),
        ("expires", 2**62, 0),
        ("created", 0, -1),
        ("deadline", 253402300799, 2**31 - 1),
    ],
)
async def test_dates_beyond_the_calendar(root: Client, field: str, seconds: int, nanos: int) -> None:
    task = definition()
    stamp = getattr(task, field)
    stamp.seconds, stamp.nanos = seconds, nanos
    failure = await refusal(root, "CreateTask", CreateTaskRequest(task_id=slugid.nice(), task=task))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason in ("INPUT_VALIDATION_ERROR", "INPUT_ERROR")


# The port


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(5000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00" + os.urandom(500),
        PREFACE + SETTINGS_FRAME + os.urandom(500),
        PREFACE + SETTINGS_FRAME + b"\xff\xff\xff\x01\x05\x00\x00\x00\x01",
        PREFACE + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" * 1000,
    ],
    ids=["random", "http/1.1", "tls hello", "broken frames", "huge header frame", "ping flood"],
)
async def test_garbage_on_the_port(server: Instance, root: Client, data: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(65536):
                pass
    except OSError:
        pass  # the server has closed it already
    writer.close()
    await root.create()


async def test_half_open_connections_hold_up_nobody(server: Instance, cluster: Cluster) -> None:
    host, _, port = server.address.rpartition(":")
    starts = [b"", PREFACE[:10], PREFACE, PREFACE + SETTINGS_FRAME, PREFACE + SETTINGS_FRAME[:4]]
    writers = []
    for n in range(100):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(starts[n % len(starts)])
        writers.append(writer)
    root = await cluster.client(server.address)
    stream = await root.work()
    task_id = await root.create()
    assert (await stream.claim()).status.task_id == task_id
    for writer in writers:
        writer.transport.abort()


async def test_calls_given_up_at_once(server: Instance, root: Client) -> None:
    """Hundreds of calls begun and cancelled, streams among them, leave nothing behind."""
    calls = []
    for n in range(300):
        if n % 3:
            request = GetTaskRequest(task_id=slugid.nice())
            calls.append(root.stub.GetTask(request, metadata=root.metadata))
        else:
            stream = await root.work(f"w{n}")
            calls.append(stream.call)
        calls[-1].cancel()
    await asyncio.gather(*(failure_of_any(call) for call in calls))
    async with asyncio.timeout(PATIENCE_S):
        while server.services.dispatcher.sessions:
            await asyncio.sleep(0.01)
