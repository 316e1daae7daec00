"""The one place where the parts meet: builds a process's services, opens its doors, runs its loops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.app import HttpDoor
from server import definitions, rpc
from server.blobs.opening import artifact_folder, open_azure, open_store
from server.blobs.staging import Staging
from server.clock import Clock
from server.config import Settings, SettingsError
from server.dispatch.counts import QueueCounts
from server.dispatch.dispatcher import Dispatcher
from server.dispatch.seen import SeenWorkers
from server.events.announcing import Announcer
from server.events.log import EventLog
from server.events.relay import Relay
from server.identity import bootstrap
from server.identity.authenticator import Authenticator
from server.identity.changes import Changes
from server.identity.clients import Clients
from server.identity.remote import RemoteAuthenticator
from server.identity.roles import Roles
from server.identity.secrets import SecretBox
from server.identity.task_credentials import TaskCredentialIssuer
from server.loops import base as loop_base
from server.loops.artifacts import artifact_loops
from server.loops.claims import ClaimExpiry
from server.loops.deadlines import Deadlines
from server.loops.dependencies import Dependencies
from server.loops.events import EventRetention
from server.loops.expiry import ClientExpiry, expiry_loops
from server.loops.heartbeat import Heartbeat
from server.loops.jobs import JobAnnouncements
from server.loops.queue_metrics import QueueMetrics
from server.loops.removed_workers import RemovedWorkers
from server.objects.backends import Backends
from server.objects.keeper import ObjectKeeper
from server.objects.remote import RemoteObjects
from server.objects.service import Objects
from server.pipeline import Pipeline
from server.root_url import RootUrl
from server.services import Services
from server.store.batcher import Batcher
from server.store.database import Database
from server.store.hub import NotifyHub
from server.transitions.artifacts import Item as ArtifactItem
from server.transitions.artifacts import Standing, change_artifacts
from server.transitions.changing import Change, change_runs
from server.transitions.creating import NewTask, create_tasks
from server.transitions.facts import TaskFacts
from server.transitions.machine import Machine
from tcqueue.v1 import (
    auth_service_pb2,
    job_queue_service_pb2,
    legacy_queue_service_pb2,
    object_service_pb2,
    queue_service_pb2,
    scheduler_service_pb2,
)

log = structlog.get_logger(__name__)

#: Services that stand in today's references.
SERVICES = (
    queue_service_pb2.DESCRIPTOR.services_by_name["Queue"],
    auth_service_pb2.DESCRIPTOR.services_by_name["Auth"],
    object_service_pb2.DESCRIPTOR.services_by_name["Object"],
    scheduler_service_pb2.DESCRIPTOR.services_by_name["Scheduler"],
)

JOB_QUEUE = job_queue_service_pb2.DESCRIPTOR.services_by_name["JobQueue"]

#: Services for clients of an older time.
ELDERS = (legacy_queue_service_pb2.DESCRIPTOR.services_by_name["LegacyQueue"], JOB_QUEUE)

#: What the server allows of clients' keepalive; server/client sends along what goes with it.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 3),
)


@dataclass(slots=True)
class Serving:
    """What is open, for whoever started it. Ports are the real ones where 0 was asked for."""

    services: Services
    prepared: bootstrap.Prepared
    grpc_port: int = 0
    http_port: int = 0


@dataclass(slots=True)
class Process:
    """A process's services and what must be undone for them, in reverse order."""

    services: Services
    prepared: bootstrap.Prepared
    heartbeat: Heartbeat
    relay: Relay | None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def close(self) -> None:
        """Ends everything that `start` began."""
        await self.stack.aclose()


async def start(settings: Settings) -> Process:
    """Connects to the database (migrated already) and builds the services on it.

    Raises Unavailable, SettingsError, or what identity's bootstrap raises.
    """
    async with AsyncExitStack() as stack:
        db = await Database.open(settings.database_url, settings=settings)
        stack.push_async_callback(db.close)
        process_id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        hub = NotifyHub(db, process_id)
        await hub.start()
        stack.push_async_callback(hub.stop)
        secrets = SecretBox.from_settings(settings)
        prepared = await bootstrap.prepare(db, hub, settings, secrets)
        remote = settings.auth_mode == "remote"
        authenticator = (RemoteAuthenticator if remote else Authenticator)(db, hub, settings)
        await authenticator.start()
        stack.push_async_callback(authenticator.stop)
        clock = Clock()
        machine = Machine(db, hub, settings, process_id)
        linger = settings.batch_linger_ms / 1000
        creations: Batcher[NewTask, TaskFacts] = Batcher(
            "create",
            lambda items: create_tasks(machine, items, definitions.same),
            lanes=1,
            max_linger=linger,
            isolate=True,
        )
        # One lane: changes of a run must be made in the order they were asked for.
        changes: Batcher[Change, Any] = Batcher(
            "change", lambda items: change_runs(machine, items), lanes=1, max_linger=linger, isolate=True
        )
        issuer = (
            TaskCredentialIssuer(settings.queue_client_id, settings.queue_access_token)
            if remote
            else TaskCredentialIssuer(bootstrap.QUEUE_CLIENT, prepared.queue_access_token)
        )
        root_url = RootUrl(settings.root_url)
        blobs = open_store(settings, secrets.derived("artifact urls"), root_url)
        stack.push_async_callback(blobs.close)
        azure = open_azure(settings)
        if azure is not None:
            stack.push_async_callback(azure.close)
        artifacts: Batcher[ArtifactItem, Standing] = Batcher(
            "artifact",
            lambda items: change_artifacts(machine, items),
            lanes=1,
            max_linger=linger,
            isolate=True,
        )
        own_objects = Objects(db, blobs, clock, Backends(settings.object_backends), issuer)
        objects: ObjectKeeper = own_objects
        if settings.object_root_url:
            objects = _remote_objects(settings, issuer, clock)
            stack.push_async_callback(objects.close)
        seen = SeenWorkers(db, hub, settings, clock)
        stack.push_async_callback(seen.close)
        counts = QueueCounts(db)
        stack.push_async_callback(counts.close)
        events = EventLog(db, hub, settings)
        stack.push_async_callback(events.stop)
        relay = Relay(db, hub, settings) if settings.amqp_url else None
        if relay is not None:
            await relay.enter()
        announcer = None
        if settings.amqp_url and settings.opens_job_queue:
            announcer = Announcer(db, settings, root_url, clock)
            stack.push_async_callback(announcer.stop)
        dispatcher = Dispatcher(machine, seen, issuer, clock, changes)
        heartbeat = Heartbeat(machine, dispatcher, clock)
        # Last of all: until its streams' runs have their lease, others must be able to bury this process.
        stack.push_async_callback(_quietly, heartbeat.leave)
        stack.push_async_callback(_finish, [creations, changes, artifacts, dispatcher.holdings.reclaims])
        stack.push_async_callback(dispatcher.stop)
        await heartbeat.beat()
        services = Services(
            settings=settings,
            clock=clock,
            db=db,
            hub=hub,
            machine=machine,
            creations=creations,
            changes=changes,
            authenticator=authenticator,
            clients=Clients(db, secrets, Changes(db, hub)),
            roles=Roles(db, Changes(db, hub)),
            issuer=issuer,
            root_url=root_url,
            blobs=blobs,
            azure=azure,
            staging=Staging(artifact_folder(settings) / "uploads"),
            artifacts=artifacts,
            own_objects=own_objects,
            objects=objects,
            seen=seen,
            counts=counts,
            dispatcher=dispatcher,
            events=events,
            announcer=announcer,
        )
        process = Process(services, prepared, heartbeat, relay, stack.pop_all())
    return process


def _remote_objects(settings: Settings, issuer: TaskCredentialIssuer, clock: Clock) -> RemoteObjects:
    if settings.object_client_id:
        return RemoteObjects(
            settings.object_root_url,
            TaskCredentialIssuer(settings.object_client_id, settings.object_access_token),
            clock,
        )
    return RemoteObjects(settings.object_root_url, issuer, clock)


async def serve(
    settings: Settings, *, reuse_port: bool = False, ready: Callable[[Serving], None] | None = None
) -> None:
    """Serves until SIGTERM or SIGINT, then drains: health says NOT_SERVING, streams are asked to go
    elsewhere, calls under way get the grace of `shutdown_grace_s`."""
    process = await start(settings)
    # What lives by now lives for ever, and a call leaves no cycles: collect seldom, and not all of it.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    try:
        await _serve(process, stop, reuse_port, ready)
    finally:
        await process.close()


async def _serve(
    process: Process, stop: asyncio.Event, reuse_port: bool, ready: Callable[[Serving], None] | None
) -> None:
    settings = process.services.settings
    serving = Serving(process.services, process.prepared)
    pipelines = open_pipelines(process.services)
    background: list[Coroutine[Any, Any, None]] = [
        process.heartbeat.run(stop),
        process.heartbeat.upkeep(stop),
    ]
    if settings.loops:
        background += [loop_base.run(loop, stop) for loop in loops(process.services)]
    if settings.http_listen:
        # Not one of the loops that one process may do for all: each has its own /metrics.
        gauges = QueueMetrics(process.services.db, pause_s=settings.queue_metrics_interval_s)
        background.append(loop_base.run(gauges, stop))
    if process.relay is not None and settings.relay:
        background.append(process.relay.run(stop))
    if settings.amqp_url and settings.loops:
        background.append(removed_workers(process.services).run(stop))
    tasks = [asyncio.create_task(work) for work in background]
    for task in tasks:
        task.add_done_callback(lambda done: stop.set())
    if process.services.announcer is not None:
        await process.services.announcer.start()
    door = GrpcDoor(settings, pipelines, reuse_port=reuse_port) if settings.grpc_listen else None
    http = HttpDoor(process.services, pipelines, reuse_port=reuse_port) if settings.http_listen else None
    try:
        if door is not None:
            serving.grpc_port = await door.open()
        if http is not None:
            serving.http_port = await http.open()
        if ready is not None:
            ready(serving)
        log.info("serving", grpc=serving.grpc_port, http=serving.http_port)
        await stop.wait()
        log.info("draining", grace_s=settings.shutdown_grace_s)
        await close_doors(process.services, *[opened for opened in (door, http) if opened is not None])
    finally:
        stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def close_doors(services: Services, *doors: GrpcDoor | HttpDoor) -> None:
    """Closes the doors, and meanwhile ends watches (they resume elsewhere), long polls (empty) and claim
    streams (politely), which would keep them open."""
    closing = asyncio.gather(*(door.close() for door in doors))
    await services.events.stop()
    await services.dispatcher.drain("shutdown", services.settings.shutdown_grace_s / 2)
    await closing


def open_pipelines(services: Services) -> list[Pipeline]:
    """The pipeline of every service; where another deployment has the clients, it also has their API."""
    settings = services.settings
    closed = set()
    if settings.auth_mode != "local":
        closed.add("Auth")
    if settings.job_queue == "off":
        closed.add(JOB_QUEUE.name)
    return [Pipeline(services, service) for service in (*SERVICES, *ELDERS) if service.name not in closed]


def removed_workers(services: Services) -> RemovedWorkers:
    """The consumer of worker-manager's messages."""
    settings = services.settings
    return RemovedWorkers(
        services.machine,
        settings.amqp_url,
        queue=f"{settings.amqp_queue_prefix}worker-removed-resolver",
        exchange_prefix=settings.amqp_worker_manager_prefix,
    )


def loops(services: Services) -> Sequence[loop_base.Loop]:
    """Every background loop of a process."""
    settings, machine = services.settings, services.machine
    announcer = services.announcer
    batch = settings.loop_batch_size
    return [
        *([JobAnnouncements(services.db, announcer, batch=batch)] if announcer is not None else []),
        ClaimExpiry(machine),
        Deadlines(machine),
        Dependencies(machine),
        *artifact_loops(
            services.db,
            services.blobs,
            services.azure,
            services.staging,
            Backends(settings.object_backends),
            delay_s=settings.artifact_expiration_delay_s,
            pause_s=settings.expiry_interval_s,
        ),
        ClientExpiry(services.clients, pause_s=settings.expiry_interval_s),
        EventRetention(
            services.db,
            retention_s=settings.event_retention_s,
            max_bytes=settings.event_log_max_bytes,
            relayed=bool(settings.amqp_url),
            batch=batch,
        ),
        *expiry_loops(
            services.db,
            task_delay_s=settings.task_expiration_delay_s,
            worker_delay_s=settings.worker_info_expiration_delay_s,
            batch=batch,
            pause_s=settings.expiry_interval_s,
        ),
    ]


class GrpcDoor:
    """The gRPC server: the queue, health by service, reflection."""

    def __init__(self, settings: Settings, pipelines: Sequence[Pipeline], *, reuse_port: bool) -> None:
        self._settings = settings
        # grpcio-health-checking has no types for its asyncio half.
        self._health: Any = getattr(health, "aio").HealthServicer()  # noqa: B009
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.max_metadata_size", 64 * 1024),
                ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
                ("grpc.so_reuseport", int(reuse_port)),
                # Calls that come faster than Python takes them wait here; beyond this they would be
                # left hanging, and reconnecting workers come in thousands.
                ("grpc.server.max_pending_requests", 100_000),
                ("grpc.server.max_pending_requests_hard_limit", 100_000),
                *_KEEPALIVE,
            ]
        )
        self._names = [pipeline.service_name for pipeline in pipelines]
        self._server.add_generic_rpc_handlers(tuple(map(rpc.generic_handler, pipelines)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        pool: Any = _MethodsToo()
        reflection.enable_server_reflection(names, self._server, pool)

    async def open(self) -> int:
        """Binds and starts; returns the port. Raises SettingsError when the address cannot be had."""
        address = self._settings.grpc_listen
        try:
            credentials = tls_credentials(self._settings)
            if credentials is not None:
                port = self._server.add_secure_port(address, credentials)
            else:
                _refuse_open_plaintext(self._settings, address)
                port = self._server.add_insecure_port(address)
        except RuntimeError as e:
            raise SettingsError(f"cannot listen on {address} (TCQUEUE_GRPC_LISTEN): is it in use?") from e
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def close(self) -> None:
        """Says NOT_SERVING, takes no more calls, and ends those under way when their grace is over."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.shutdown_grace_s)


class _MethodsToo:
    """The descriptor pool for reflection; it finds methods as well, which `grpcurl describe` asks for."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file of a message, enum, service, or method."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service = self._pool.FindServiceByName(symbol.rpartition(".")[0])
            if symbol.rpartition(".")[2] not in service.methods_by_name:
                raise
            return service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def tls_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS as the settings ask for it; None for plaintext. Raises SettingsError for unreadable files."""
    if not settings.tls_cert_file and not settings.tls_key_file:
        return None
    try:
        key = Path(settings.tls_key_file).read_bytes()
        chain = Path(settings.tls_cert_file).read_bytes()
        ca = Path(settings.tls_client_ca_file).read_bytes() if settings.tls_client_ca_file else None
    except OSError as e:
        raise SettingsError(f"TLS needs both a certificate and a key that can be read: {e}") from e
    return grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=ca is not None)


def _refuse_open_plaintext(settings: Settings, address: str) -> None:
    host = address.rsplit(":", 1)[0].strip("[]")
    if host in ("localhost", "127.0.0.1", "::1") or host.startswith("127.") or settings.allow_plaintext:
        return
    raise SettingsError(
        f"plaintext on {address} would show tokens to the network: set TCQUEUE_TLS_CERT_FILE and "
        "TCQUEUE_TLS_KEY_FILE, or TCQUEUE_ALLOW_PLAINTEXT=true behind a proxy that speaks TLS"
    )


async def _finish(batchers: Sequence[Batcher[Any, Any]]) -> None:
    for batcher in batchers:
        await batcher.drain()


async def _quietly(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception as e:
        log.warning("shutdown step failed", error=str(e))
