"""The credentials a worker gets with each claim and reclaim (auth.md 9, queue.md 1.7)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from server.identity import certificates
from server.identity.model import epoch_ms

TaskCredentials: TypeAlias = certificates.TemporaryCredentials


class TaskCredentialIssuer:
    """Signs task credentials as the queue's own client, which must hold every scope it hands on."""

    __slots__ = ("access_token", "client_id")

    def __init__(self, client_id: str, access_token: str) -> None:
        self.client_id = client_id
        self.access_token = access_token

    def issue(
        self,
        task_id: str,
        run_id: int,
        worker_group: str,
        worker_id: str,
        taken_until: datetime,
        scopes: Sequence[str],
        now: datetime,
    ) -> TaskCredentials:
        """Credentials for one run, good from `now` to `taken_until`; they cover it and `task.scopes`.

        Earlier ones for the same run stay good until their own end.
        """
        until_ms = epoch_ms(taken_until)
        run = f"{task_id}/{run_id}"
        # The seconds are written as JavaScript divides: a fraction only when there is one.
        until = until_ms // 1000 if until_ms % 1000 == 0 else until_ms / 1000
        return certificates.issue(
            self.client_id,
            self.access_token,
            scopes=[
                f"queue:reclaim-task:{run}",
                f"queue:resolve-task:{run}",
                f"queue:create-artifact:{run}",
                *scopes,
            ],
            start_ms=epoch_ms(now),
            expiry_ms=until_ms,
            client_id=f"task-client/{run}/on/{worker_group}/{worker_id}/until/{until}",
        )

    def issue_one(self, client_id: str, scope: str, start: datetime, expiry: datetime) -> TaskCredentials:
        """Credentials under a name of their own that hold one scope."""
        return certificates.issue(
            self.client_id,
            self.access_token,
            scopes=[scope],
            start_ms=epoch_ms(start),
            expiry_ms=epoch_ms(expiry),
            client_id=client_id,
        )
