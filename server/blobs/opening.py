"""Which store a deployment has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from server.blobs.azure import AzureStore
from server.blobs.disk import DiskStore
from server.blobs.s3 import S3Store
from server.blobs.signing import UrlSigner
from server.config import Settings


def artifact_folder(settings: Settings) -> Path:
    """The folder for artifacts, and for uploads on their way, of this machine."""
    return Path(settings.artifact_dir or Path(settings.data_dir) / "artifacts")


def open_store(settings: Settings, key: bytes, root_url: Callable[[], str]) -> DiskStore | S3Store:
    """The store of the settings. `key` signs the disk store's URLs."""
    if settings.uses_s3:
        return S3Store(settings)
    return DiskStore(artifact_folder(settings), UrlSigner(key), root_url, quota=settings.disk_quota_bytes)


def open_azure(settings: Settings) -> AzureStore | None:
    """The store for artifacts of type `azure`; None where none is set."""
    return AzureStore(settings) if settings.azure_account else None
