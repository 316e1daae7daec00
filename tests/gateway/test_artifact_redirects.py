"""Where artifacts are, over HTTP: redirects, their headers and bodies, signed URLs (queue.md 7.6)."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest

from server.client.credentials import Credentials
from tests.auth_api.test_signatures import bewit
from tests.conformance.json_door import HttpDoor
from tests.conformance.test_artifacts import NAME, Run, begun
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")


def _path(run: Run, name: str = NAME) -> str:
    return f"/api/queue/v1/task/{run.task_id}/runs/0/artifacts/{quote(name, safe='')}"


def _base(queue: Queue) -> str:
    return str(queue.door.base)  # type: ignore[attr-defined]


def _bewit(queue: Queue, path: str, scopes: list[str] | None = None) -> str:
    """The path with a signature of root's, good for a quarter of an hour."""
    root = queue.credentials
    door = queue.door
    assert isinstance(door, HttpDoor)
    return bewit(door, path, Credentials(root.client_id, root.access_token, authorized_scopes=scopes))


@pytest.fixture
async def client(queue: Queue) -> httpx.AsyncClient:
    """A plain client without credentials."""
    return httpx.AsyncClient(base_url=_base(queue))


async def test_bewits(queue: Queue, client: httpx.AsyncClient) -> None:
    """Q-183: a signed URL is enough, and no more than its scopes."""
    run = await begun(queue)
    await run.create("s3", "private/x y")
    async with client:
        path = _path(run, "private/x y")
        assert (await client.get(path)).status_code == 403
        answer = await client.get(_bewit(queue, path))
        assert answer.status_code == 303
        assert answer.headers["location"] == answer.json()["url"]
        assert answer.headers["x-taskcluster-artifact-storage-type"] == "s3"
        assert answer.headers["cache-control"] == "no-store no-cache must-revalidate"
        for scopes, status in (
            (["queue:get-artifact:private/x y"], 303),
            (["queue:get-artifact:other"], 403),
        ):
            assert (await client.get(_bewit(queue, path, scopes))).status_code == status
        other = _bewit(queue, path).replace("private", "public")
        assert (await client.get(other)).status_code == 401


async def test_head(queue: Queue, client: httpx.AsyncClient) -> None:
    """As GET, without its body."""
    run = await begun(queue)
    await run.create("reference")
    await run.create("error", "error")
    async with client:
        answer = await client.head(_bewit(queue, _path(run)))
        assert (answer.status_code, answer.content) == (303, b"")
        assert answer.headers["location"].startswith("https://example.com/")
        answer = await client.head(_bewit(queue, _path(run, "error")))
        assert (answer.status_code, answer.content) == (424, b"")


async def test_errors(queue: Queue, client: httpx.AsyncClient) -> None:
    """Q-166: 424, a body of two members, and the header; an object that is gone has it, too."""
    run = await begun(queue)
    await run.create("error")
    made = await run.create("object", "object")
    await run.upload(made)
    await run.finish(made.upload_id, "object")
    await queue.sql("delete from objects")
    async with client:
        answer = await client.get(_bewit(queue, _path(run)))
        assert answer.status_code == 424
        assert answer.json() == {"reason": "file-missing-on-worker", "message": "no such file"}
        answer = await client.get(_bewit(queue, _path(run, "object")))
        assert (answer.status_code, answer.json()["code"]) == (404, "ResourceNotFound")
        assert answer.headers["x-taskcluster-artifact-storage-type"] == "object"
        answer = await client.get(_bewit(queue, _path(run, "unknown")))
        assert answer.status_code == 404
        assert "x-taskcluster-artifact-storage-type" not in answer.headers


async def test_empty_names(queue: Queue, client: httpx.AsyncClient) -> None:
    """Q-184: a list with a slash behind it is an artifact without a name."""
    run = await begun(queue)
    async with client:
        for path in (
            f"/api/queue/v1/task/{run.task_id}/runs/0/artifacts/",
            f"/api/queue/v1/task/{run.task_id}/artifacts/",
        ):
            answer = await client.get(_bewit(queue, path))
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidRequestArguments")


@pytest.mark.settings(
    artifact_store="s3",
    s3_endpoint="https://s3.example.com",
    s3_access_key="key",
    s3_secret_key="secret",
    s3_public_bucket="open",
    s3_private_bucket="closed",
    s3_public_cdn_url="https://cdn.example.com",
)
async def test_the_header_that_skips_the_cdn(queue: Queue, client: httpx.AsyncClient) -> None:
    """Q-159: `true` and `1`, in any case, and nothing else."""
    run = await begun(queue)
    await run.create("s3")
    async with client:
        for value, host in (("true", "s3"), ("TRUE", "s3"), ("1", "s3"), ("yes", "cdn"), ("0", "cdn")):
            url = _bewit(queue, _path(run))
            answer = await client.get(url, headers={"X-Taskcluster-Skip-CDN": value})
            assert answer.json()["url"].startswith(f"https://{host}.example.com/"), value
