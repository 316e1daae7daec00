"""Calling the queue from a command: where it is, who calls, and what a refusal looks like."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click
import grpc

from server.cli.base import CommandError
from server.client.channel import DEFAULT_ADDRESS, Tls, open_channel
from server.client.credentials import Credentials, CredentialsError
from server.client.errors import Failure, failure_of
from tcqueue.v1.queue_service_pb2_grpc import QueueStub

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

_CALL_S = 60.0
_FOLLOW_S = 60.0
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the queue is, and who calls."""

    address: str
    tls: Tls | None
    credentials: Credentials

    def error(self, failure: Failure) -> CommandError:
        """A refusal as the command's end."""
        status, message = failure.status, failure.message
        if status is grpc.StatusCode.UNAVAILABLE and not failure.reason:
            return CommandError(
                f"no queue answers at {self.address}",
                "start one with `tcqueue serve`, or say where it is with TCQUEUE_CLIENT_ADDRESS",
            )
        if status is grpc.StatusCode.UNAUTHENTICATED:
            return CommandError(message, "check TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN")
        if status is grpc.StatusCode.PERMISSION_DENIED and self.credentials.anonymous:
            return CommandError(
                message,
                "you called without credentials: set TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN",
            )
        if failure.violations:
            lines = [f"{field or 'request'}: {description}" for field, description in failure.violations]
            return CommandError("\n  ".join(["the queue refused the request", *lines]))
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CommandError(f"the queue at {self.address} did not answer in time")
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.reason:
            return CommandError(message, "the message is larger than the server's max_message_bytes")
        return CommandError(message)


class Queue:
    """Blocking calls; refusals end the command."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._channel = open_channel(connection.address, connection.tls)
        self.stub = QueueStub(self._channel)

    def call(self, method: Callable[..., A], request: object, *, timeout_s: float = _CALL_S) -> A:
        """A unary call: `queue.call(queue.stub.GetTask, GetTaskRequest(...))`."""
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata())
        except grpc.RpcError as e:
            raise self.connection.error(failure_of(e)) from None

    def follow(
        self, method: Callable[..., Iterable[A]], request: object, *, note: Callable[[A], None] | None = None
    ) -> Iterator[A]:
        """A watch. When the server stops or is lost on the way, the watch goes on with the next one, if
        that comes within a minute; `note` puts into the request where."""
        lost: float | None = None
        heard = False
        while True:
            try:
                for answer in method(request, metadata=self._metadata()):
                    heard, lost = True, None
                    yield answer
                    if note is not None:
                        note(answer)
                return
            except grpc.RpcError as e:
                failure = failure_of(e)
                lost = time.monotonic() if lost is None else lost
                passing = failure.status is grpc.StatusCode.UNAVAILABLE and heard
                if not passing or time.monotonic() - lost > _FOLLOW_S:
                    raise self.connection.error(failure) from None
                time.sleep(_AGAIN_S)

    def pages(self, method: Callable[..., A], request: Any) -> Iterator[A]:
        """All pages of a list."""
        while True:
            page: Any = self.call(method, request)
            yield page
            if not page.continuation_token:
                return
            request.continuation_token = page.continuation_token

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        try:
            return self.connection.credentials.metadata()
        except CredentialsError as e:
            raise CommandError(str(e)) from None


def connection_from_env(address: str | None = None) -> Connection:
    """As the TCQUEUE_CLIENT_* variables say; a given address wins. `https://` in front of it, or any
    of the TLS files, asks for TLS."""
    where = address or os.environ.get("TCQUEUE_CLIENT_ADDRESS") or DEFAULT_ADDRESS
    files = Tls(*(os.environ.get(f"TCQUEUE_CLIENT_{name}_FILE", "") for name in ("CA", "CERT", "KEY")))
    tls = files if files != Tls() or where.startswith("https://") else None
    where = where.removeprefix("https://").removeprefix("http://").rstrip("/")
    try:
        return Connection(where, tls, Credentials.from_env(os.environ))
    except CredentialsError as e:
        raise CommandError(str(e), "set both, or neither to call without credentials") from None


def address_option(function: Callable[..., T]) -> Callable[..., T]:
    """`--address`, where the queue is."""
    return click.option(
        "--address",
        metavar="HOST:PORT",
        help="Where the queue is. [default: TCQUEUE_CLIENT_ADDRESS, or 127.0.0.1:50051]",
    )(function)


def with_queue(function: Callable[..., T]) -> Callable[..., T]:
    """Gives a command an open Queue as its first argument, and `--address`."""

    @address_option
    @wraps(function)
    def wrapped(*args: Any, address: str | None, **kwargs: Any) -> T:
        queue = Queue(connection_from_env(address))
        try:
            return function(queue, *args, **kwargs)
        finally:
            queue.close()

    return wrapped
