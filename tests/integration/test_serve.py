"""`tcqueue serve` as people start it: alone, as several processes, on its own database or on another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from server.client.channel import Tls, open_aio_channel
from server.client.credentials import Credentials
from server.identity.secrets import new_key
from server.store import embedded
from tcqueue.v1.monitoring_pb2 import PingRequest
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_queue_pb2 import ListTaskQueuesRequest

PATIENCE_S = 40.0
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("TCQUEUE_", "TASKCLUSTER_")) and name != "DATABASE_URL"
}
TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"


@asynccontextmanager
async def serving(folder: Path, *options: str, **variables: str) -> AsyncIterator[tuple[Process, Any]]:
    """A server, and what it said when it was ready."""
    arguments = ["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--json", *options]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", *arguments),
        cwd=folder,
        stdout=PIPE,
        stderr=PIPE,
        limit=1 << 20,
        env={**PLAIN, "TCQUEUE_LOG_FORMAT": "json", "TCQUEUE_SHUTDOWN_GRACE_S": "5", **variables},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = await process.stdout.readline()
        yield process, json.loads(line or b"null")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def log_line(process: Process, event: str) -> dict[str, Any]:
    """The next line of the log about an event."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stderr.readline():
            if line.startswith(b"{"):
                said: dict[str, Any] = json.loads(line)
                if said["event"] == event:
                    return said
    raise AssertionError(f"the log ended without {event!r}")


async def answers(address: str, credentials: Credentials) -> bool:
    """Whether a queue answers there, to these credentials."""
    async with open_aio_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = QueueStub(channel)
        await stub.Ping(PingRequest(), timeout=PATIENCE_S)
        await stub.ListTaskQueues(
            ListTaskQueuesRequest(), metadata=credentials.metadata(), timeout=PATIENCE_S
        )
    return True


async def stopped(process: Process) -> int:
    """Its exit code after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert output == b""
    assert process.returncode is not None
    return process.returncode


@pytest.mark.timeout(120)
async def test_a_fresh_start_makes_everything_and_the_next_one_keeps_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as (process, said):
        root = Credentials(said["clientId"], said["accessToken"])
        assert await answers(said["grpc"], root)
        with urllib.request.urlopen(f"http://{said['http']}/__heartbeat__", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert await stopped(process) == 0
    assert embedded.running_dsn(tmp_path / "data") is None
    async with serving(tmp_path) as (process, said):
        assert "accessToken" not in said
        assert await answers(said["grpc"], root)
        assert await stopped(process) == 0


@pytest.mark.timeout(120)
async def test_several_processes_share_the_ports_and_are_restarted(dsn: str, tmp_path: Path) -> None:
    variables = {
        "DATABASE_URL": dsn,
        "TCQUEUE_ENCRYPTION_KEY": new_key(),
        "TCQUEUE_ROOT_ACCESS_TOKEN": TOKEN,
        "TCQUEUE_HOT_POOL_SIZE": "2",
        "TCQUEUE_COLD_POOL_SIZE": "2",
    }
    root = Credentials("root", TOKEN)
    async with serving(tmp_path, "--processes", "2", **variables) as (process, said):
        assert await answers(said["grpc"], root)
        pids = {}
        for _ in range(2):
            line = await log_line(process, "process serves")
            pids[line["process"]] = line["pid"]
        assert sorted(pids) == [1, 2]
        os.kill(pids[1], signal.SIGKILL)
        assert (await log_line(process, "process ended unasked; it is started again"))["code"] == -9
        again = await log_line(process, "process serves")
        assert again["process"] == 1 and again["pid"] != pids[1]
        for _ in range(4):
            assert await answers(said["grpc"], root)
        assert await stopped(process) == 0
        assert not any(map(_lives, [again["pid"], pids[2]]))


@pytest.mark.timeout(120)
async def test_when_the_parent_is_killed_the_others_end(dsn: str, tmp_path: Path) -> None:
    variables = {"DATABASE_URL": dsn, "TCQUEUE_ENCRYPTION_KEY": new_key()}
    async with serving(tmp_path, "--processes", "2", **variables) as (process, _):
        handles = [os.pidfd_open((await log_line(process, "process serves"))["pid"]) for _ in range(2)]
        process.kill()
        for handle in handles:
            await _readable(handle)
            os.close(handle)


@pytest.mark.timeout(120)
async def test_a_port_that_is_taken_is_named(dsn: str, tmp_path: Path) -> None:
    key = new_key()
    async with serving(tmp_path, DATABASE_URL=dsn, TCQUEUE_ENCRYPTION_KEY=key) as (_, said):
        for processes in ("1", "2"):
            second = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.cli", "serve", "--http-listen", ""),
                *("--grpc-listen", said["grpc"], "--processes", processes),
                cwd=tmp_path,
                stderr=PIPE,
                env={**PLAIN, "DATABASE_URL": dsn, "TCQUEUE_ENCRYPTION_KEY": key, "GRPC_VERBOSITY": "NONE"},
            )
            _, errors = await asyncio.wait_for(second.communicate(), PATIENCE_S)
            assert second.returncode == 1
            assert f"error: cannot listen on {said['grpc']} (TCQUEUE_GRPC_LISTEN)" in errors.decode()
            assert "Traceback" not in errors.decode()


@pytest.mark.timeout(120)
async def test_a_signal_while_it_starts_leaves_no_database_running(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", ""),
        cwd=tmp_path,
        stdout=PIPE,
        stderr=PIPE,
        env=PLAIN,
    )
    assert process.stderr is not None
    assert b"starting PostgreSQL" in await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert embedded.running_dsn(tmp_path / "data") is None


async def test_a_database_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "serve"),
        cwd=tmp_path,
        stderr=PIPE,
        env={**PLAIN, "DATABASE_URL": "postgresql://127.0.0.1:1/x", "TCQUEUE_ENCRYPTION_KEY": new_key()},
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 1
    assert errors.decode().startswith("error: the database cannot be reached")
    assert "hint: check DATABASE_URL" in errors.decode()
    assert "Traceback" not in errors.decode()


@pytest.mark.timeout(120)
async def test_tls_protects_the_door_and_can_ask_for_a_certificate(dsn: str, tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path, "door")
    mine, my_key = _certificate(tmp_path, "me")
    variables = {
        "DATABASE_URL": dsn,
        "TCQUEUE_ENCRYPTION_KEY": new_key(),
        "TCQUEUE_TLS_CERT_FILE": cert,
        "TCQUEUE_TLS_KEY_FILE": key,
        "TCQUEUE_TLS_CLIENT_CA_FILE": mine,
    }
    async with serving(tmp_path, **variables) as (process, said):
        for tls, code in [
            (Tls(cert, mine, my_key), None),
            (Tls(cert), grpc.StatusCode.UNAVAILABLE),
            (Tls(mine, mine, my_key), grpc.StatusCode.UNAVAILABLE),
            (None, grpc.StatusCode.UNAVAILABLE),
        ]:
            async with open_aio_channel(said["grpc"], tls, options=[]) as channel:
                ping = QueueStub(channel).Ping(PingRequest(), timeout=PATIENCE_S)
                if code is None:
                    assert (await ping).alive
                else:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await ping
                    assert caught.value.code() is code
        assert await stopped(process) == 0


def _certificate(folder: Path, name: str) -> tuple[str, str]:
    """Files with a certificate that signed itself, for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(files[0]), str(files[1])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _readable(handle: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(handle, readable.set_result, None)
    try:
        await asyncio.wait_for(readable, PATIENCE_S)
    finally:
        loop.remove_reader(handle)
