"""Artifacts of type azure against a real blob store: URLs, expiry, how the newer API shows them (Q-223)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from server.blobs.azure import AzureStore
from server.config import Settings, SettingsError
from server.errors import Unavailable
from server.loops.artifacts import ArtifactExpiry
from server.services import Services
from server.transitions.artifacts import Artifact, NewArtifact
from tcqueue.v1.artifact_pb2 import StorageType
from tests.conformance.building import now
from tests.plugins.azurite import Azurite
from tests.plugins.services import Api

BLOCK = {"x-ms-blob-type": "BlockBlob", "Content-Type": "text/x"}


@pytest.fixture
def settings(settings: Settings, azurite: Azurite) -> Settings:
    return replace(settings, **azurite.settings(), artifact_expiration_delay_s=0.0)


@pytest.fixture
async def store(services: Services) -> AzureStore:
    assert services.azure is not None
    await services.azure.setup()
    return services.azure


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def test_urls(store: AzureStore, client: httpx.AsyncClient) -> None:
    """Put, put again, get; nothing with what was changed, or is over."""
    key = "task/0/public/a b%?#.log"
    for text in (b"line 1", b"line 1\nline 2"):
        put = await client.put(store.put_url(key, now=now()), content=text, headers=BLOCK)
        assert put.status_code == 201, put.text
    got = await client.get(store.get_url(key, now=now()))
    assert (got.content, got.headers["content-type"]) == (b"line 1\nline 2", "text/x")
    for url in (
        store.get_url(key, now=now()).replace("public", "private"),
        store.get_url(key, now=now(hours=-1)),
        store.get_url(key, now=now()).partition("?")[0],
        store.get_url(key, now=now())[:-4] + "AAAA",
    ):
        assert (await client.get(url)).status_code in (403, 404)
    for url in (store.get_url(key, now=now()), store.put_url(key, now=now(hours=-1))):
        assert (await client.put(url, content=b"x", headers=BLOCK)).status_code == 403
    assert (await client.get(store.get_url(key, now=now()))).content == b"line 1\nline 2"


async def test_deletion(store: AzureStore, client: httpx.AsyncClient) -> None:
    """Many at once, those that are not there among them."""
    for i in range(3):
        await client.put(store.put_url(f"k{i}", now=now()), content=b"x", headers=BLOCK)
    assert await store.delete([*(f"missing{i}" for i in range(300)), "k0", "k2"]) == {}
    assert await store.keys() == ["k1"]
    await store.setup()
    assert await store.keys() == ["k1"]


async def test_expiry_and_reading(
    services: Services, api: Api, store: AzureStore, client: httpx.AsyncClient
) -> None:
    """An artifact that the older API made: the newer one shows it as a reference, and expiry deletes it."""
    task_id = await api.create(expires=None)
    await api.claim()
    for name, expires in (("old", now(minutes=-5)), ("young", now(minutes=30))):
        artifact = Artifact("azure", "text/x", None, expires, True, bucket=store.bucket)
        standing = await services.artifacts.submit(NewArtifact(task_id, 0, name, artifact))
        assert standing.artifact.storage_type == "azure"
        url = store.put_url(f"{task_id}/0/{name}", now=standing.now)
        assert (await client.put(url, content=b"x", headers=BLOCK)).status_code == 201
    found = await api("GetArtifact", task_id=task_id, run_id=0, name="young")
    assert found.storage_type == StorageType.STORAGE_TYPE_REFERENCE
    assert (await client.get(found.url)).content == b"x"
    listed = await api("ListArtifacts", task_id=task_id, run_id=0)
    assert [a.storage_type for a in listed.artifacts] == [StorageType.STORAGE_TYPE_REFERENCE] * 2
    expiry = ArtifactExpiry(services.db, services.blobs, store, delay_s=0.0, pause_s=1.0)
    assert await expiry.run_once() == 1
    assert await store.keys() == [f"{task_id}/0/young"]
    assert await services.db.fetch("select name from artifacts") == [("young",)]


async def test_a_store_that_is_away(azurite: Azurite, settings: Settings) -> None:
    """It is said, and may pass."""
    store = AzureStore(replace(settings, azure_endpoint="http://127.0.0.1:1/x"))
    with pytest.raises(Unavailable, match="Azure"):
        await store.delete(["x"])
    await store.close()


def test_half_of_the_settings() -> None:
    with pytest.raises(SettingsError, match="TCQUEUE_AZURE_ACCOUNT_KEY, TCQUEUE_AZURE_CONTAINER"):
        Settings(azure_account="x").check()
