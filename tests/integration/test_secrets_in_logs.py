"""No log line holds what somebody could sign with (auth.md, A-004 and what goes wrong around it)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import httpx
import mohawk

from server.identity import certificates
from tests.plugins.deployment import PLAIN, TOKEN


def test_what_is_logged(tmp_path: Path) -> None:
    """Passing and failing signatures of every kind, at the level that says most."""
    arguments = ["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **PLAIN,
            "TCQUEUE_ROOT_ACCESS_TOKEN": TOKEN,
            "TCQUEUE_LOG_LEVEL": "debug",
            "TCQUEUE_LOG_FORMAT": "json",
            "TCQUEUE_SHUTDOWN_GRACE_S": "1",
        },
    )
    assert process.stdout is not None
    base = f"http://{json.loads(process.stdout.readline())['http']}"
    secrets = {TOKEN, "wrong" * 8}
    made = certificates.issue(
        "root", TOKEN, scopes=["auth:current-scopes"], start_ms=0, expiry_ms=1000, client_id="named"
    )
    secrets |= {made.access_token, json.loads(made.certificate)["signature"]}
    with httpx.Client(base_url=base) as client:
        for client_id, key, ext in (
            ("root", TOKEN, None),
            ("root", "wrong" * 8, None),
            ("named", made.access_token, {"certificate": json.loads(made.certificate)}),
        ):
            for path, body in (("/api/auth/v1/scopes/current", ""), ("/api/queue/v1/tasks", "{")):
                sender = mohawk.Sender(
                    {"id": client_id, "key": key, "algorithm": "sha256"},
                    base + path,
                    "POST" if body else "GET",
                    content=body,
                    content_type="application/json" if body else "",
                    ext=base64.b64encode(json.dumps(ext).encode()).decode() if ext else None,
                )
                headers = {"Authorization": sender.request_header, "Content-Type": "application/json"}
                client.request("POST" if body else "GET", path, content=body, headers=headers)
                secrets.add(sender.request_header.partition('mac="')[2].partition('"')[0])
                client.post("/api/queue/v1/task/x/runs/0/claim", headers=headers)
    process.terminate()
    said, logged = process.communicate(timeout=30)
    everything = said + logged
    assert "serving" in logged
    assert [secret for secret in secrets if secret in everything] == []
