"""Channels as every client of the queue should open them: liveness, sizes, retries, TLS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from tcqueue.v1 import queue_service_pb2

DEFAULT_ADDRESS = "127.0.0.1:50051"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

#: Repeating these after an answer was lost does something else than calling once: a second claim
#: takes further runs, and the first ones wait for their claim to run out.
NOT_REPEATABLE = frozenset({"ClaimTasks"})

ChannelOption = tuple[str, str | int]


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards the server; all empty means the system's authorities and no client certificate."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them. OSError for files that cannot be read."""
        ca, cert, key = (
            Path(name).read_bytes() if name else None
            for name in (self.ca_file, self.cert_file, self.key_file)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)


def service_config() -> str:
    """The JSON that makes gRPC repeat unary calls that the server, or the way to it, was away for.

    About a second and a half in all, so that a restart goes unnoticed and a dead server does not.
    """
    service = queue_service_pb2.DESCRIPTOR.services_by_name["Queue"]
    repeatable = [
        {"service": service.full_name, "method": method.name}
        for method in service.methods
        if not (method.client_streaming or method.server_streaming or method.name in NOT_REPEATABLE)
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": repeatable, "retryPolicy": policy}]})


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[ChannelOption]:
    """Options for any channel to the queue, blocking or asynchronous."""
    return [
        # A peer that vanished without a word is found within 40 s, also below an idle stream. The
        # server allows a ping each 10 s; without a call open there is nothing to find.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", service_config()),
    ]


def open_channel(
    address: str, tls: Tls | None = None, options: Sequence[ChannelOption] | None = None
) -> grpc.Channel:
    """A blocking channel; it connects at the first call."""
    chosen = channel_options() if options is None else list(options)
    if tls is None:
        return grpc.insecure_channel(address, options=chosen)
    return grpc.secure_channel(address, tls.credentials(), options=chosen)


def open_aio_channel(
    address: str, tls: Tls | None = None, options: Sequence[ChannelOption] | None = None
) -> grpc.aio.Channel:
    """An asynchronous channel; it connects at the first call."""
    chosen = channel_options() if options is None else list(options)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=chosen)
    return grpc.aio.secure_channel(address, tls.credentials(), options=chosen)
