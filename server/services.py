"""The parts a handler works with, put together once for a process by `app`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from server.blobs.azure import AzureStore
from server.blobs.disk import DiskStore
from server.blobs.s3 import S3Store
from server.blobs.staging import Staging
from server.clock import Clock
from server.config import Settings
from server.dispatch.counts import QueueCounts
from server.dispatch.dispatcher import Dispatcher
from server.dispatch.seen import SeenWorkers
from server.events.announcing import Announcer
from server.events.log import EventLog
from server.identity.authenticator import Authenticator
from server.identity.clients import Clients
from server.identity.roles import Roles
from server.identity.task_credentials import TaskCredentialIssuer
from server.objects.keeper import ObjectKeeper
from server.objects.service import Objects
from server.root_url import RootUrl
from server.store.batcher import Batcher
from server.store.database import Database
from server.store.hub import NotifyHub
from server.transitions.artifacts import Item as ArtifactItem
from server.transitions.artifacts import Standing
from server.transitions.changing import Change
from server.transitions.creating import NewTask
from server.transitions.facts import TaskFacts
from server.transitions.machine import Machine


@dataclass(slots=True, kw_only=True)
class Services:
    """One process's parts. Handlers reach everything through here and keep nothing themselves."""

    settings: Settings
    clock: Clock
    db: Database
    hub: NotifyHub
    #: Transitions: the state machine's transactions.
    machine: Machine
    #: Coalesces concurrent creations.
    creations: Batcher[NewTask, TaskFacts]
    #: Coalesces concurrent accepts and resolutions, of reports and streams alike.
    changes: Batcher[Change, Any]
    authenticator: Authenticator
    clients: Clients
    roles: Roles
    issuer: TaskCredentialIssuer
    #: Where clients reach this deployment.
    root_url: RootUrl
    #: Artifact bytes.
    blobs: DiskStore | S3Store
    #: Bytes of artifacts of type azure; None where no account is set.
    azure: AzureStore | None
    #: Uploads over gRPC on their way.
    staging: Staging
    #: Coalesces concurrent creations and ends of artifacts.
    artifacts: Batcher[ArtifactItem, Standing]
    #: The object service that this deployment offers.
    own_objects: Objects
    #: The object service that keeps the queue's object artifacts: the same, or another deployment's.
    objects: ObjectKeeper
    #: Which workers and queues have been seen, and who is quarantined.
    seen: SeenWorkers
    #: How many runs are pending and claimed.
    counts: QueueCounts
    #: Who gets which run: claim streams and long polls.
    dispatcher: Dispatcher
    #: The event log: one reader for all watchers of this process.
    events: EventLog
    #: Tells a broker of new jobs; None where there is no broker, or no door for jobs.
    announcer: Announcer | None
    started: float = field(default_factory=time.monotonic)
