"""Settings: every time, limit and address in one frozen object, read from TCQUEUE_* variables.

A setting's environment name is TCQUEUE_ and its field name in upper case; DATABASE_URL stands
for `database_url`. Defaults are those of queue.md 6.1. Durations are seconds, as floats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit


class SettingsError(ValueError):
    """A setting's text cannot be read; the message names the variable and what it takes."""


def setting(default: Any, help_text: str) -> Any:
    """A field of Settings with the sentence that the configuration table shows for it."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All there is to configure. Unusual values are legal: a claim timeout of 1 s, an expiry delay
    below zero (things expire late) or above (they expire early)."""

    # Where state lives
    database_url: str = setting("", "PostgreSQL 15-18 to use; empty starts the embedded one in data_dir")
    data_dir: str = setting("data", "folder of the embedded Postgres, its keys and artifacts")
    hot_pool_size: int = setting(6, "connections for the batched hot statements, per process")
    cold_pool_size: int = setting(8, "connections for everything else, per process")
    statement_timeout_s: float = setting(30.0, "longest a single statement of a call may run")
    db_wait_timeout_s: float = setting(5.0, "how long a call waits for a connection before UNAVAILABLE")

    # Front doors
    grpc_listen: str = setting("127.0.0.1:50051", "address of the gRPC door; empty closes it")
    http_listen: str = setting("127.0.0.1:8080", "address of the HTTP door; empty closes it")
    root_url: str = setting(
        "", "address that clients know this deployment by; empty: references are relative"
    )
    trust_proxy: bool = setting(
        False, "believe X-Forwarded-Port and X-Forwarded-Proto, which a proxy in front must then set"
    )
    tls_cert_file: str = setting("", "PEM certificate chain; with tls_key_file turns TLS on")
    tls_key_file: str = setting("", "PEM private key of tls_cert_file")
    tls_client_ca_file: str = setting("", "PEM CA; given, clients must present a certificate it signed")
    allow_plaintext: bool = setting(False, "serve without TLS on addresses other than loopback")
    max_message_bytes: int = setting(16 * 1024 * 1024, "largest gRPC message taken or sent")
    max_concurrent_streams: int = setting(20_000, "RPCs one connection may have open at once")
    shutdown_grace_s: float = setting(20.0, "time running calls get after SIGTERM")
    loops: bool = setting(True, "run the background loops inside serve")
    batch_linger_ms: float = setting(12.0, "longest a busy batcher waits for company")

    # The queue's own clocks (queue.md 6.1)
    claim_timeout_s: float = setting(1200.0, "how long a claim lasts before it must be renewed")
    claim_poll_s: float = setting(20.0, "how long ClaimTasks waits on an empty queue")
    max_task_deadline_days: float = setting(5.0, "how far ahead a deadline may lie")
    task_max_dependencies: int = setting(10_000, "most dependencies a task may name")
    deadline_delay_s: float = setting(60.0, "grace after a deadline before it is enforced")
    claim_poll_delay_s: float = setting(5.0, "idle pause of the claim expiry loop")
    deadline_poll_delay_s: float = setting(5.0, "idle pause of the deadline loop")
    dependency_poll_delay_s: float = setting(5.0, "idle pause of the loop that pages large fan-outs")
    queue_metrics_interval_s: float = setting(30.0, "time between two counts of every queue for /metrics")
    loop_batch_size: int = setting(256, "rows one round of a loop handles")
    dependency_page_size: int = setting(1000, "dependents released inside the resolving transaction")
    task_expiration_delay_s: float = setting(
        -1800.0, "cut-off for deleting tasks, groups, edges: now plus this"
    )
    artifact_expiration_delay_s: float = setting(-1800.0, "cut-off for deleting artifacts: now plus this")
    worker_info_expiration_delay_s: float = setting(
        -1800.0, "cut-off for deleting queues and workers: now plus this"
    )
    expiry_interval_s: float = setting(3600.0, "pause between two rounds of the expiry loop")
    worker_info_update_s: float = setting(1800.0, "how often a busy worker's row is written anew")
    event_retention_s: float = setting(7 * 86400.0, "how long the event log is kept")
    event_log_max_bytes: int = setting(
        0, "size beyond which its oldest events are deleted before their time; 0 for none"
    )

    # Message broker
    amqp_url: str = setting(
        "", "broker that events go to, such as amqps://user:password@host/vhost; empty: none"
    )
    amqp_exchange_prefix: str = setting(
        "exchange/taskcluster-{service}/v1/", "what exchanges' names begin with, {service} being queue, auth"
    )
    amqp_scheduler_prefix: str = setting(
        "scheduler/v1/", "what the names of the task-graph scheduler's exchanges begin with"
    )
    amqp_confirm_timeout_s: float = setting(
        15.0, "silence of the broker after which another connection is made"
    )
    amqp_worker_manager_prefix: str = setting(
        "exchange/taskcluster-worker-manager/v1/",
        "what the exchanges' names begin with on which worker-manager tells of workers that are gone",
    )
    amqp_queue_prefix: str = setting("queue/", "what the names of our own queues at the broker begin with")
    amqp_legacy_exchange_prefix: str = setting(
        "queue/v1/",
        "what the names of the exchanges of 2014 begin with, for events in that time's shapes; empty: none",
    )
    amqp_public_url: str = setting(
        "",
        "broker's address for everybody who asks the API of 2014; empty: amqp_url without user and password",
    )
    relay: bool = setting(True, "relay events to the broker inside serve, when this process leads")

    # Task graphs
    scheduler_id: str = setting(
        "task-graph-scheduler",
        "scheduler of all tasks of task graphs; not to be changed once there are any",
    )

    # The job queue of 2014, /0.1.0
    job_queue: str = setting(
        "auto",
        "serve /0.1.0, open to whoever reaches it: on, off, or auto: on loopback; docs/job-queue.md",
    )
    job_queue_task_queue_id: str = setting("jobqueue/default", "task queue of all jobs")
    job_queue_client: str = setting(
        "", "client that callers of /0.1.0 act as; empty: one that may do just what these calls need"
    )
    job_queue_owner: str = setting(
        "jobqueue@localhost", "metadata.owner of the task of a job that has no tags.requester"
    )
    job_queue_source: str = setting(
        "", "metadata.source of the tasks that are jobs; empty: each job's own address"
    )
    job_queue_external_addr: str = setting(
        "",
        "host and port for workers in messages about jobs; empty: those of root_url, or of the HTTP door",
    )

    # ClaimWork streams (design: the stream is the lease)
    stream_accept_timeout_s: float = setting(10.0, "a claim not accepted by then is taken back")
    stream_grace_s: float = setting(45.0, "lease of a broken stream's runs before they are retried")
    stream_ping_interval_s: float = setting(20.0, "pause between pings on an idle stream")
    stream_pong_timeout_s: float = setting(20.0, "silence after a ping that ends the stream")
    stream_max_age_s: float = setting(3600.0, "age at which a stream is closed politely; jittered by a tenth")
    stream_send_buffer: int = setting(64, "messages queued for a slow reader before it is cut off")
    stream_max_slots: int = setting(1024, "most slots one stream may offer")
    stream_reclaim_fraction: float = setting(0.5, "part of the claim timeout after which runs are reclaimed")
    claimer_poll_s: float = setting(2.0, "safety-net poll of a queue that has waiting workers")
    process_lease_s: float = setting(15.0, "silence after which another process counts as dead")

    # Identity
    encryption_key: str = setting("", "key for secrets at rest; empty keeps one in data_dir (embedded only)")
    root_access_token: str = setting("", "access token of the first-start root client; empty makes one up")
    static_clients: list[dict[str, Any]] = field(
        default_factory=list, metadata={"help": "JSON list of clientId, accessToken, scopes, description"}
    )
    last_used_interval_s: float = setting(
        6 * 3600.0, "how old a client's lastDateUsed must be before a use of it is written down"
    )
    default_anonymous_role: bool = setting(True, "fill the anonymous role at the very first start")

    # Artifacts
    artifact_store: str = setting(
        "auto", "where artifacts lie: disk (below data_dir), s3, or auto: s3 where both its buckets are set"
    )
    artifact_dir: str = setting(
        "", "folder of the disk store, shared by all machines that serve; empty: artifacts in data_dir"
    )
    disk_quota_bytes: int = setting(0, "most bytes the disk store holds; 0 leaves the disk as the limit")
    sign_public_artifact_urls: bool = setting(
        False, "sign URLs of artifacts below public/ too, and show those of the disk store to nobody without"
    )
    object_backends: list[dict[str, Any]] = field(
        default_factory=lambda: [{"backendId": "store", "when": "all"}],
        metadata={"help": "JSON list: which objects are taken by which backend; docs/artifacts.md"},
    )
    object_root_url: str = setting(
        "", "root URL of another deployment whose object service keeps object artifacts; empty: this one"
    )
    object_client_id: str = setting(
        "", "static client that signs for the object service there; empty: the queue's own"
    )
    object_access_token: str = setting("", "that client's access token")
    s3_endpoint: str = setting("", "URL of the S3 service, such as https://s3.us-west-2.amazonaws.com")
    s3_region: str = setting("us-east-1", "region of the buckets")
    s3_access_key: str = setting("", "access key of the S3 service")
    s3_secret_key: str = setting("", "secret key of the S3 service")
    s3_public_bucket: str = setting("", "bucket for artifacts below public/, readable by everybody")
    s3_private_bucket: str = setting("", "bucket for all other artifacts, and for objects")
    s3_public_cdn_url: str = setting(
        "", "address of a content delivery network in front of the public bucket"
    )
    azure_account: str = setting("", "storage account for artifacts of type azure, which the v1 API knows")
    azure_account_key: str = setting("", "key of that account")
    azure_container: str = setting("", "container for them, in which nothing else may lie")
    azure_endpoint: str = setting("", "address of that account; empty: its place at Azure")
    s3_references_bucket: str = setting("", "bucket for `tcqueue publish-references`: references")
    s3_schemas_bucket: str = setting("", "bucket for `tcqueue publish-references`: JSON schemas")

    # Another deployment's auth service
    auth_mode: str = setting(
        "local", "who checks signatures: local tables, or remote: another deployment's auth service"
    )
    auth_root_url: str = setting("", "root URL of that deployment, for auth_mode remote")
    queue_client_id: str = setting(
        "",
        "for auth_mode remote: static client that the queue signs task credentials as; it must hold * there",
    )
    queue_access_token: str = setting("", "that client's access token")
    auth_serve_credentials: bool = setting(
        False, "let holders of auth:credentials read clients' access tokens, as the Auth API of 2014 did"
    )

    # Logs
    log_level: str = setting("info", "debug, info, warning or error")
    log_format: str = setting("auto", "json, console, or auto: console on a terminal")

    @staticmethod
    def from_env(environ: Mapping[str, str], **overrides: Any) -> Settings:
        """Settings from the environment; overrides that are not None win over it.

        Raises SettingsError for an unreadable value and for an unknown TCQUEUE_ name, which is
        nearly always a misspelt one.
        """
        values: dict[str, Any] = {}
        known = {environment_name(f.name): f for f in fields(Settings)}
        for name, f in known.items():
            if name in environ:
                values[f.name] = _parse(name, str(f.type), environ[name])
        allowed_elsewhere = ("TCQUEUE_TEST_", "TCQUEUE_CLIENT_")
        for name in environ:
            if name.startswith("TCQUEUE_") and name not in known and not name.startswith(allowed_elsewhere):
                raise SettingsError(f"{name} is not a setting; `tcqueue serve --help` lists them")
        values.update({k: v for k, v in overrides.items() if v is not None})
        settings = Settings(**values)
        settings.check()
        return settings

    def check(self) -> None:
        """Raises SettingsError for values that nothing could work with."""
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise SettingsError(f"{environment_name(name)} must be more than 0")
        if self.claim_timeout_s > 31 * 86400:
            raise SettingsError("TCQUEUE_CLAIM_TIMEOUT_S must be at most 31 days: credentials last no longer")
        if self.auth_mode not in ("local", "remote"):
            raise SettingsError(f"TCQUEUE_AUTH_MODE takes local or remote, not {self.auth_mode!r}")
        if self.auth_mode == "remote":
            if not self.auth_root_url.startswith(("http://", "https://")):
                raise SettingsError(
                    "TCQUEUE_AUTH_MODE=remote needs TCQUEUE_AUTH_ROOT_URL, an http(s) address"
                )
            if not self.queue_client_id.startswith("static/") or not self.queue_access_token:
                raise SettingsError(
                    "TCQUEUE_AUTH_MODE=remote needs TCQUEUE_QUEUE_CLIENT_ID, which begins with static/, and "
                    "TCQUEUE_QUEUE_ACCESS_TOKEN: the client there that signs task credentials"
                )
        if self.artifact_store not in ("auto", "disk", "s3"):
            raise SettingsError(f"TCQUEUE_ARTIFACT_STORE takes auto, disk or s3, not {self.artifact_store!r}")
        if self.uses_s3:
            needed = (
                "s3_endpoint",
                "s3_access_key",
                "s3_secret_key",
                "s3_public_bucket",
                "s3_private_bucket",
            )
            lacking = [environment_name(name) for name in needed if not getattr(self, name)]
            if lacking:
                raise SettingsError(f"artifacts in S3 need {', '.join(lacking)}")
        azure = ("azure_account", "azure_account_key", "azure_container")
        lacking = [environment_name(name) for name in azure if not getattr(self, name)]
        if lacking and len(lacking) < len(azure):
            raise SettingsError(f"artifacts in Azure need {', '.join(lacking)}, too")
        if self.amqp_url and not self.amqp_url.startswith(("amqp://", "amqps://")):
            raise SettingsError("TCQUEUE_AMQP_URL takes an amqp:// or amqps:// address")
        if not _SCHEDULER_ID.fullmatch(self.scheduler_id):
            raise SettingsError("TCQUEUE_SCHEDULER_ID takes 1 to 38 letters, digits, - and _")
        self._check_job_queue()
        if self.object_root_url and not self.object_root_url.startswith(("http://", "https://")):
            raise SettingsError("TCQUEUE_OBJECT_ROOT_URL takes an http(s) address")
        if not 0 < self.stream_reclaim_fraction < 1:
            raise SettingsError("TCQUEUE_STREAM_RECLAIM_FRACTION must lie between 0 and 1")

    def _check_job_queue(self) -> None:
        if self.job_queue not in ("auto", "on", "off"):
            raise SettingsError(f"TCQUEUE_JOB_QUEUE takes auto, on or off, not {self.job_queue!r}")
        if not _TASK_QUEUE_ID.fullmatch(self.job_queue_task_queue_id):
            raise SettingsError("TCQUEUE_JOB_QUEUE_TASK_QUEUE_ID takes <provisioner>/<worker type>")
        if self.job_queue_source and not _SOURCE.match(self.job_queue_source):
            raise SettingsError("TCQUEUE_JOB_QUEUE_SOURCE takes an http, https, ssh or git@ address")
        client = self.job_queue_client
        if self.auth_mode == "remote" and client and not client.startswith("static/"):
            raise SettingsError(
                "TCQUEUE_JOB_QUEUE_CLIENT takes a static client when TCQUEUE_AUTH_MODE is remote"
            )

    @property
    def offer_s(self) -> float:
        """How long an offer stands. The claim's time runs from the offer: one that is accepted near its end
        would be lost before it can be renewed, and that costs a retry."""
        return min(self.stream_accept_timeout_s, self.claim_timeout_s / 2)

    @property
    def opens_job_queue(self) -> bool:
        """Whether the HTTP door has `/0.1.0`."""
        if self.job_queue != "auto":
            return self.job_queue == "on"
        reached_by_others = self.trust_proxy or (
            bool(self.root_url) and not is_loopback(urlsplit(self.root_url).hostname or "")
        )
        host = self.http_listen.rpartition(":")[0].strip("[]") or "127.0.0.1"
        return bool(self.http_listen) and is_loopback(host) and not reached_by_others

    @property
    def uses_s3(self) -> bool:
        """Whether artifacts lie in S3."""
        chosen = self.artifact_store
        return chosen == "s3" or (chosen == "auto" and bool(self.s3_public_bucket and self.s3_private_bucket))


def is_loopback(host: str) -> bool:
    """Whether a host's name or address leads to this machine and nowhere else."""
    return host in ("localhost", "::1") or bool(_LOOPBACK.fullmatch(host))


def environment_name(field_name: str) -> str:
    """The environment variable that carries a setting."""
    return "DATABASE_URL" if field_name == "database_url" else f"TCQUEUE_{field_name.upper()}"


def _parse(name: str, kind: str, text: str) -> Any:
    try:
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.strip().lower()
            ]
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind.startswith("list"):
            value = json.loads(text)
            if not isinstance(value, list):
                raise ValueError(text)
            return value
    except (ValueError, KeyError) as e:
        raise SettingsError(f"{name} takes {_KINDS.get(kind, 'a JSON list')}, not {text!r}") from e
    return text


_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}")
_TASK_QUEUE_ID = re.compile(r"[a-zA-Z0-9_-]{1,38}/[a-z]([-a-z0-9]{0,36}[a-z0-9])?")
_SOURCE = re.compile(r"https?://|ssh://|git@")
_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number of seconds"}
_SCHEDULER_ID = re.compile(r"[a-zA-Z0-9_-]{1,38}")
_POSITIVE = (
    "hot_pool_size",
    "cold_pool_size",
    "statement_timeout_s",
    "claim_timeout_s",
    "loop_batch_size",
    "dependency_page_size",
    "stream_max_slots",
    "stream_accept_timeout_s",
    "stream_ping_interval_s",
    "stream_pong_timeout_s",
    "stream_max_age_s",
    "queue_metrics_interval_s",
    "process_lease_s",
    "claimer_poll_s",
    "max_message_bytes",
)
