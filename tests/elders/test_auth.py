"""The auth service of 2014 (auth.md 7.1)."""

from __future__ import annotations

import httpx
import pytest

from tests.conformance.json_door import signature
from tests.plugins.elders import Elder
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")


@pytest.mark.elder("auth.inspect")
async def test_inspecting(elder: Elder) -> None:
    """Scopes and expiry, and nothing else; for holders of either scope."""
    for scope in ("auth:inspect", "auth:credentials"):
        answer = await elder.having(scope).call("auth", "inspect", "root")
        assert (answer.status, set(answer.json)) == (200, {"clientId", "scopes", "expires"})
        assert (answer.json["clientId"], answer.json["scopes"]) == ("root", ["*"])
    assert (await elder.having("auth:other").call("auth", "inspect", "root")).status == 403
    unknown = await elder.call("auth", "inspect", "no/such")
    assert unknown.status == 404
    assert unknown.json["message"].startswith("Client not found")


@pytest.mark.elder("auth.getCredentials")
@pytest.mark.settings(auth_serve_credentials=True)
async def test_credentials(elder: Elder, queue: Queue) -> None:
    """With the access token, where the settings allow it; at the host of that time, too, with a signature
    that covers the path as it was used."""
    answer = await elder.having("auth:credentials").call("auth", "getCredentials", "root")
    assert (answer.status, set(answer.json)) == (200, {"clientId", "accessToken", "scopes", "expires"})
    assert answer.json["accessToken"] == queue.settings.root_access_token
    assert (await elder.having("auth:inspect").call("auth", "getCredentials", "root")).status == 403
    port = elder.base.rpartition(":")[2]
    url = f"http://auth.example.com:{port}/v1/client/root/scopes"
    headers = {
        "Host": f"auth.example.com:{port}",
        "Authorization": signature(elder.credentials, "GET", url, b"", ""),
    }
    async with httpx.AsyncClient() as http:
        told = await http.get(f"{elder.base}/v1/client/root/scopes", headers=headers)
        assert (told.status_code, told.json()["clientId"]) == (200, "root")
        # There the queue is not known.
        assert (await http.get(f"{elder.base}/v1/pending-tasks/p", headers=headers)).status_code == 404


@pytest.mark.elder("auth.getCredentials")
async def test_credentials_are_kept(elder: Elder) -> None:
    """By default nobody is told."""
    assert (await elder.call("auth", "getCredentials", "root")).status in (403, 404)
