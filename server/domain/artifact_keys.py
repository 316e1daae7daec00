"""What follows from an artifact's place: key in a bucket, object, name of credentials (queue.md 7.2)."""

from __future__ import annotations

import re

MAX_NAME = 1024
"""Longest name of an artifact; the published schemas of replies have room for no more."""

_PUBLIC = "public/"
_NOT_IN_CLIENT_IDS = re.compile(r"[^A-Za-z0-9!@/:.+|_-]")
_MAX_CREDENTIAL_NAME = 400


def key(task_id: str, run_id: int, name: str) -> str:
    """The key of an artifact's bytes."""
    return f"{task_id}/{run_id}/{name}"


def is_public(name: str) -> bool:
    """Whether the artifact lies in the public bucket."""
    return name.startswith(_PUBLIC)


def object_name(artifact_key: str) -> str:
    """The name of an artifact's object."""
    return f"t/{artifact_key}"


def split(artifact_key: str) -> tuple[str, int, str] | None:
    """Task, run and name out of a key; None for a key that is no artifact's."""
    task_id, _, rest = artifact_key.partition("/")
    run, slash, name = rest.partition("/")
    if not slash or not name or not run.isdecimal() or not run.isascii() or len(run) > 4:
        return None
    return task_id, int(run), name


def download_credential(artifact_key: str) -> str:
    """The clientId of credentials for downloads: what no clientId may hold becomes `_`."""
    return f"artifact-download/{_NOT_IN_CLIENT_IDS.sub('_', artifact_key)}"[:_MAX_CREDENTIAL_NAME]
