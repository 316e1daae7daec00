"""Artifacts of 2014 (queue.md 4.2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from server.config import Settings
from tests.conformance.building import new_id, now
from tests.conformance.door import refused
from tests.elders.building import WORKER, iso, task
from tests.plugins.azurite import Azurite
from tests.plugins.elders import Elder
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("http")

TEXT = {"Content-Type": "text/plain"}


async def _running(elder: Elder) -> str:
    task_id = new_id()
    await elder.queue("createTask", task_id, payload=task())
    assert (await elder.queue("claimTask", task_id, 0, payload=WORKER)).status == 200
    return task_id


def _s3(**changes: Any) -> dict[str, Any]:
    return {"storageType": "s3", "expires": iso(days=1), "contentType": "text/plain", **changes}


def _reference(**changes: Any) -> dict[str, Any]:
    return {**_s3(storageType="reference", url="https://example.com/a"), **changes}


def _broken(**changes: Any) -> dict[str, Any]:
    return {
        "storageType": "error",
        "expires": iso(days=1),
        "reason": "file-missing-on-worker",
        "message": "no such file",
        **changes,
    }


@pytest.mark.elder(
    *("queue.createArtifact", "queue.getArtifact", "queue.getLastestArtifact"),
    *("queue.listArtifacts", "queue.listLatestArtifacts"),
)
async def test_an_artifact_in_the_store(elder: Elder) -> None:
    """Up through the URL given, and down through a redirect without a body."""
    task_id, name = await _running(elder), "public/logs/a b.log"
    made = await elder.queue("createArtifact", task_id, 0, name, payload=_s3())
    assert set(made.json) == {"storageType", "contentType", "expires", "putUrl"}
    assert (await elder.http.put(made.json["putUrl"], content=b"hello", headers=TEXT)).status_code == 200
    for answer in (
        await elder.anonymous.queue("getArtifact", task_id, 0, name),
        await elder.anonymous.queue("getLastestArtifact", task_id, name),
    ):
        assert (answer.status, answer.json) == (303, None)
        assert (await elder.http.get(answer.headers["location"])).content == b"hello"
    listed = await elder.anonymous.queue("listArtifacts", task_id, 0)
    (artifact,) = listed.json["artifacts"]
    assert set(listed.json) == {"artifacts"}
    assert set(artifact) == {"storageType", "name", "expires", "contentType"}
    assert (artifact["storageType"], artifact["name"]) == ("s3", name)
    assert (await elder.anonymous.queue("listLatestArtifacts", task_id)).json == listed.json


async def test_how_long_urls_are_good(elder: Elder) -> None:
    """Twenty minutes, for uploads and ten seconds more."""
    task_id = await _running(elder)
    made = (await elder.queue("createArtifact", task_id, 0, "private/x", payload=_s3())).json
    told = datetime.fromisoformat(made["expires"])
    assert abs(told - now(minutes=20)) < timedelta(minutes=1)
    assert int(httpx.URL(made["putUrl"]).params["expires"]) == int(told.timestamp()) + 10
    got = await elder.queue("getArtifact", task_id, 0, "private/x")
    until = int(httpx.URL(got.headers["location"]).params["expires"])
    assert abs(until - now(minutes=20).timestamp()) < 60


@pytest.mark.elder("queue.createArtifact", "queue.getArtifact")
async def test_scopes(elder: Elder) -> None:
    """To create: the name's and the worker's. To get: the name's, and none below `public/`."""
    task_id, name = await _running(elder), "private/log"
    needed = [f"queue:create-artifact:{name}", "assume:worker-id:group/worker"]
    for scope in needed:
        answer = await elder.having(scope).queue("createArtifact", task_id, 0, name, payload=_reference())
        assert answer.status == 403
    answer = await elder.having(*needed).queue("createArtifact", task_id, 0, name, payload=_reference())
    assert (answer.status, answer.json) == (200, {"storageType": "reference"})
    assert (await elder.anonymous.queue("getArtifact", task_id, 0, name)).status == 403
    got = await elder.having(f"queue:get-artifact:{name}").queue("getArtifact", task_id, 0, name)
    assert (got.status, got.headers["location"]) == (303, "https://example.com/a")


@pytest.mark.elder("queue.createArtifact", "queue.getArtifact")
async def test_an_artifact_that_could_not_be_made(elder: Elder, queue: Queue) -> None:
    """Q-220: 403 here, 424 for today's clients."""
    task_id, name = await _running(elder), "public/missing"
    made = await elder.queue("createArtifact", task_id, 0, name, payload=_broken())
    assert (made.status, made.json) == (200, {"storageType": "error"})
    answer = await elder.queue("getArtifact", task_id, 0, name)
    told = {"reason": "file-missing-on-worker", "message": "no such file"}
    assert (answer.status, answer.json) == (403, told)
    with refused("ErrorArtifact"):
        await queue("GetArtifact", task_id=task_id, run_id=0, name=name)


@pytest.mark.elder("queue.createArtifact")
async def test_repeats(elder: Elder) -> None:
    """The expiry may go later, a reference's URL may change, the content type does not matter; a run that has
    ended takes artifacts, too."""
    task_id = await _running(elder)

    async def create(name: str, payload: dict[str, Any]) -> int:
        return (await elder.queue("createArtifact", task_id, 0, name, payload=payload)).status

    assert await create("a", _reference()) == 200
    assert await create("a", _reference(url="https://example.com/b", expires=iso(days=2))) == 200
    assert await create("a", _reference(contentType="text/html", expires=iso(days=2))) == 200
    assert await create("a", _reference(expires=iso(hours=1))) == 409
    assert await create("a", _s3()) == 409
    assert await create("e", _broken()) == 200
    assert await create("e", _broken(message="other", expires=iso(days=2))) == 409
    await elder.queue("reportCompleted", task_id, 0, payload={"success": True})
    assert await create("late", _s3()) == 200


@pytest.mark.elder("queue.createArtifact", "queue.getArtifact", "queue.listArtifacts")
async def test_what_is_not_there(elder: Elder) -> None:
    """Unknown tasks, runs and artifacts are 404; what is malformed is 400."""
    task_id = await _running(elder)
    for unknown, run in ((new_id(), 0), (task_id, 1)):
        assert (await elder.queue("createArtifact", unknown, run, "a", payload=_s3())).status == 404
        assert (await elder.queue("listArtifacts", unknown, run)).status == 404
        assert (await elder.queue("getArtifact", unknown, run, "public/a")).status == 404
    assert (await elder.queue("getArtifact", task_id, 0, "public/a")).status == 404
    assert (await elder.queue("listLatestArtifacts", new_id())).status == 404
    for payload in (_s3(storageType="link"), _s3(expires=None), _s3(more=1), _broken(reason="bored")):
        assert (await elder.queue("createArtifact", task_id, 0, "a", payload=payload)).status == 400
    assert (
        await elder.queue("createArtifact", task_id, 0, "a", payload=_s3(storageType="azure"))
    ).status == 400


class TestAzure:
    """With an Azure account."""

    @pytest.fixture
    def settings(self, settings: Settings, azurite: Azurite) -> Settings:
        return replace(settings, **azurite.settings())

    @pytest.mark.elder("queue.createArtifact", "queue.getArtifact", "queue.listArtifacts")
    async def test_a_blob(self, elder: Elder, queue: Queue) -> None:
        """Q-223: a URL to write to, again and again, with an end; a redirect to read."""
        assert queue.services.azure is not None
        await queue.services.azure.setup()
        task_id, name = await _running(elder), "public/live.log"
        made = await elder.queue("createArtifact", task_id, 0, name, payload=_s3(storageType="azure"))
        assert set(made.json) == {"storageType", "contentType", "expires", "putUrl"}
        assert (made.json["storageType"], made.json["contentType"]) == ("azure", "text/plain")
        assert iso(minutes=29) < made.json["expires"] < iso(minutes=31)
        headers = {**TEXT, "x-ms-blob-type": "BlockBlob"}
        for text in (b"line 1", b"line 1\nline 2"):
            put = await elder.http.put(made.json["putUrl"], content=text, headers=headers)
            assert put.status_code == 201
        answer = await elder.anonymous.queue("getArtifact", task_id, 0, name)
        assert (answer.status, answer.json) == (303, None)
        got: httpx.Response = await elder.http.get(answer.headers["location"])
        assert got.content == b"line 1\nline 2"
        listed = await elder.queue("listArtifacts", task_id, 0)
        assert listed.json["artifacts"][0]["storageType"] == "azure"
