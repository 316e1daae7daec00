"""The doors themselves: health, reflection, TLS, what is refused at the start, the HTTP side, the drain."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.app import HttpDoor
from server import app
from server.app import GrpcDoor, open_pipelines
from server.client.credentials import Credentials
from server.config import Settings, SettingsError
from tcqueue.v1.monitoring_pb2 import PingRequest
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tests.conformance.json_door import signature


@pytest.fixture
async def process(server_settings: Settings) -> AsyncIterator[app.Process]:
    """A server with its doors shut."""
    process = await app.start(server_settings)
    yield process
    await process.close()


def _door(process: app.Process, **changes: Any) -> GrpcDoor:
    settings = dataclasses.replace(process.services.settings, **changes)
    return GrpcDoor(settings, open_pipelines(process.services), reuse_port=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a self-signed certificate for localhost and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(chain), str(private)


async def _ping(channel: Any) -> bool:
    async with channel:
        answer = await QueueStub(channel).Ping(PingRequest(), timeout=5)
        return bool(answer.alive)


async def test_health_by_service_and_not_serving_while_draining(process: app.Process) -> None:
    door = _door(process, shutdown_grace_s=5.0)
    port = await door.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="tcqueue.v1.Queue")
        )
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        closing = asyncio.create_task(app.close_doors(process.services, door))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await closing


async def test_tls(process: app.Process, certificate: tuple[str, str]) -> None:
    chain, key = certificate
    door = _door(process, tls_cert_file=chain, tls_key_file=key)
    port = await door.open()
    trusted = grpc.ssl_channel_credentials(Path(chain).read_bytes())
    assert await _ping(grpc.aio.secure_channel(f"localhost:{port}", trusted))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _ping(grpc.aio.insecure_channel(f"localhost:{port}"))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await app.close_doors(process.services, door)


async def test_mutual_tls(process: app.Process, certificate: tuple[str, str]) -> None:
    chain, key = certificate
    door = _door(process, tls_cert_file=chain, tls_key_file=key, tls_client_ca_file=chain)
    port = await door.open()
    pem = Path(chain).read_bytes()
    known = grpc.ssl_channel_credentials(pem, Path(key).read_bytes(), pem)
    assert await _ping(grpc.aio.secure_channel(f"localhost:{port}", known))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _ping(grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(pem)))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await app.close_doors(process.services, door)


def _http(process: app.Process, **changes: Any) -> HttpDoor:
    settings = dataclasses.replace(process.services.settings, http_listen="127.0.0.1:0", **changes)
    services = dataclasses.replace(process.services, settings=settings)
    return HttpDoor(services, open_pipelines(services), reuse_port=False)


async def test_https(process: app.Process, certificate: tuple[str, str]) -> None:
    """auth.md 1.3: with TLS on the socket, the port that a signature covers is its own. queue.md 8.6:
    browsers are told to stay with TLS, by refusals, too."""
    chain, key = certificate
    door = _http(process, tls_cert_file=chain, tls_key_file=key)
    port = await door.open()
    trusted = ssl.create_default_context(cafile=chain)
    async with httpx.AsyncClient(verify=trusted) as client:
        url = f"https://localhost:{port}/api/auth/v1/scopes/current"
        root = Credentials("root", process.services.settings.root_access_token)
        header = signature(root, "GET", url, b"", "")
        answer = await client.get(url, headers={"Authorization": header})
        assert (answer.status_code, answer.json()) == (200, {"scopes": ["*"]})
        for reply in (answer, await client.get(f"https://localhost:{port}/api/queue/v1/nothing")):
            assert reply.headers["strict-transport-security"] == "max-age=7776000"
    await door.close()


@pytest.mark.parametrize("files", [("/nowhere", "/nowhere"), ("/nowhere", ""), ("", "/nowhere")])
async def test_unreadable_certificate_for_https(process: app.Process, files: tuple[str, str]) -> None:
    with pytest.raises(SettingsError, match="certificate and a key"):
        await _http(process, tls_cert_file=files[0], tls_key_file=files[1]).open()


async def test_plaintext_stays_on_loopback(process: app.Process) -> None:
    with pytest.raises(SettingsError, match="TCQUEUE_TLS_CERT_FILE"):
        await _door(process, grpc_listen="0.0.0.0:0").open()
    door = _door(process, grpc_listen="0.0.0.0:0", allow_plaintext=True)
    assert await door.open()
    await app.close_doors(process.services, door)


async def test_unreadable_certificate(process: app.Process) -> None:
    with pytest.raises(SettingsError, match="certificate and a key"):
        await _door(process, tls_cert_file="/nowhere/cert.pem", tls_key_file="/nowhere/key.pem").open()


async def test_a_port_in_use_is_said_so(process: app.Process) -> None:
    door = _door(process)
    port = await door.open()
    with pytest.raises(SettingsError, match="TCQUEUE_GRPC_LISTEN"):
        await _door(process, grpc_listen=f"127.0.0.1:{port}").open()
    await app.close_doors(process.services, door)


async def test_the_http_side(process: app.Process) -> None:
    door = _http(process)
    port = await door.open()

    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    assert await asyncio.to_thread(get, "/__heartbeat__") == (200, b"{}")
    assert await asyncio.to_thread(get, "/__lbheartbeat__") == (200, b"{}")
    status, body = await asyncio.to_thread(get, "/__version__")
    assert (status, orjson.loads(body).keys()) == (200, {"version", "commit", "source", "build"})
    status, body = await asyncio.to_thread(get, "/metrics")
    assert status == 200
    assert b"tcqueue_claim_streams" in body
    status, body = await asyncio.to_thread(get, "/no/such/page")
    assert (status, orjson.loads(body)) == (404, {"error": "Not found"})
    await door.close()


def test_settings_that_nothing_could_work_with() -> None:
    for name, text in (
        ("TCQUEUE_CLAIM_TIMEOUT_S", "0"),
        ("TCQUEUE_CLAIM_TIMEOUT_S", str(32 * 86400)),
        ("TCQUEUE_STREAM_RECLAIM_FRACTION", "1"),
        ("TCQUEUE_STREAM_PING_INTERVAL_S", "-1"),
        ("TCQUEUE_QUEUE_METRICS_INTERVAL_S", "0"),
        ("TCQUEUE_HOT_POOL_SIZE", "many"),
        ("TCQUEUE_LOOPS", "perhaps"),
        ("TCQUEUE_NO_SUCH_THING", "1"),
    ):
        with pytest.raises(SettingsError, match=name):
            Settings.from_env({name: text})
