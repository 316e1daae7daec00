"""Doors into a server: how a request gets in, and what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from server.client.channel import open_aio_channel
from server.client.credentials import Credentials
from server.client.errors import failure_of
from server.methods import read_service
from tcqueue.v1 import (
    auth_service_pb2,
    job_queue_service_pb2,
    object_service_pb2,
    queue_service_pb2,
    scheduler_service_pb2,
)

#: The methods of all services by name; of those that every service has, the queue's.
METHODS = {
    **read_service(auth_service_pb2.DESCRIPTOR.services_by_name["Auth"]),
    **read_service(job_queue_service_pb2.DESCRIPTOR.services_by_name["JobQueue"]),
    **read_service(object_service_pb2.DESCRIPTOR.services_by_name["Object"]),
    **read_service(scheduler_service_pb2.DESCRIPTOR.services_by_name["Scheduler"]),
    **read_service(queue_service_pb2.DESCRIPTOR.services_by_name["Queue"]),
}

#: Tag and value of a field that no message has.
STRANGE_FIELD = b"\xf8\x7f\x01"


class Refused(Exception):
    """A call was answered with an error; `code` is its name in queue.md 8.2, such as RequestConflict.
    `faults` are the texts of what was wrong with the nodes of a task graph."""

    def __init__(
        self, code: str, message: str, details: dict[str, str] | None = None, faults: Sequence[str] = ()
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details or {}
        self.faults = list(faults)


class Door(Protocol):
    """A way into the server. A request may hold a field made by `strange`, which a door must pass on as
    something the server does not know. `in_paths` says that ids travel in paths, where an empty one cannot
    be said."""

    in_paths: bool

    async def call(self, method: str, request: Message, credentials: Credentials) -> Any:
        """The response to a unary method. Raises Refused."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


class GrpcDoor:
    """The gRPC door, over a socket."""

    in_paths = False

    def __init__(self, port: int) -> None:
        # No retries: a test wants to see each answer.
        options: list[tuple[str, str | int]] = [
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", 64 << 20),
        ]
        self.channel = open_aio_channel(f"127.0.0.1:{port}", options=options)

    async def call(self, method: str, request: Message, credentials: Credentials) -> Any:
        """See Door."""
        rules = METHODS[method]
        invoke = self.channel.unary_unary(
            rules.full_name,
            request_serializer=rules.request_class.SerializeToString,
            response_deserializer=rules.response_class.FromString,
        )
        try:
            return await invoke(request, metadata=credentials.metadata())
        except grpc.aio.AioRpcError as e:
            raise _refused(e) from None

    async def close(self) -> None:
        """See Door."""
        await self.channel.close(None)


@contextmanager
def refused(code: str, *words: str) -> Iterator[pytest.ExceptionInfo[Refused]]:
    """The call inside must be refused with this code, or one of these with `|` between them, and with
    these words in its message."""
    with pytest.raises(Refused) as caught:
        yield caught
    assert caught.value.code in code.split("|"), caught.value
    for word in words:
        assert word in caught.value.message


def strange(message: Message) -> Message:
    """Puts a field into a message that its type does not have."""
    message.MergeFromString(STRANGE_FIELD)
    return message


def _refused(error: grpc.aio.AioRpcError) -> Refused:
    failure = failure_of(error)
    if not failure.reason:
        return Refused(failure.status.name, failure.message)
    code = re.sub(r"(?:^|_)([A-Z])([A-Z]*)", lambda m: m[1] + m[2].lower(), failure.reason)
    faults = [description for _, description in failure.violations]
    return Refused(code, failure.message, dict(failure.metadata), faults)
