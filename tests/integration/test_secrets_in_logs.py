"""No log line holds what somebody could sign with."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import grpc
import httpx
import mohawk

from server.client.credentials import Credentials
from server.identity import certificates
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_pb2 import GetTaskRequest
from tests.plugins.deployment import TOKEN, deployed

WRONG = "wrong" * 8


def test_what_is_logged(tmp_path: Path) -> None:
    """Passing and failing signatures of both doors, at the level that says most."""
    now_ms = int(time.time() * 1000)
    live = certificates.issue(
        "root",
        TOKEN,
        scopes=["auth:current-scopes"],
        start_ms=now_ms,
        expiry_ms=now_ms + 60_000,
        client_id="named",
    )
    past = certificates.issue("root", TOKEN, scopes=[], start_ms=0, expiry_ms=1000)
    secrets = {TOKEN, WRONG, live.access_token, past.access_token}
    secrets |= {json.loads(made.certificate)["signature"] for made in (live, past)}
    callers = [
        Credentials("root", TOKEN),
        Credentials("root", WRONG),
        Credentials(live.client_id, live.access_token, live.certificate),
        Credentials(past.client_id, past.access_token, past.certificate),
    ]
    statuses = []
    with deployed(tmp_path, TCQUEUE_LOG_LEVEL="debug", TCQUEUE_LOG_FORMAT="json") as (said, log):
        base = f"http://{said['http']}"
        with httpx.Client(base_url=base) as client, grpc.insecure_channel(said["grpc"]) as channel:
            for who in callers:
                ext = json.dumps({"certificate": json.loads(who.certificate)}) if who.certificate else ""
                sender = mohawk.Sender(
                    {"id": who.client_id, "key": who.access_token, "algorithm": "sha256"},
                    f"{base}/api/auth/v1/scopes/current",
                    "GET",
                    content="",
                    content_type="",
                    ext=base64.b64encode(ext.encode()).decode() if ext else None,
                )
                headers = {"Authorization": sender.request_header}
                secrets.add(sender.request_header.partition('mac="')[2].partition('"')[0])
                statuses.append(client.get("/api/auth/v1/scopes/current", headers=headers).status_code)
                client.post("/api/queue/v1/tasks", headers=headers, content=b"{")
                client.get(f"/api/auth/v1/scopes/current?bewit={WRONG}")
                secrets.add(who.metadata()[0][1].removeprefix("Bearer "))
                try:
                    QueueStub(channel).GetTask(GetTaskRequest(task_id="x"), metadata=who.metadata())
                except grpc.RpcError:
                    pass
    assert statuses == [200, 401, 200, 401]
    logged = log.read_text()
    assert "serving" in logged
    assert [secret for secret in secrets if secret in logged] == []
