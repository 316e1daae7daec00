"""Claim expiry: runs whose claim, or stream's grace, has run out are lost and retried (queue.md 2.6)."""

from __future__ import annotations

from collections.abc import Sequence

from server.loops.base import handle_all
from server.store.statements import load
from server.transitions.machine import Machine
from server.transitions.resolving import EXPIRED, Resolve, resolve_runs

_SQL = load("claims")


class ClaimExpiry:
    """Each round handles up to a batch, oldest first. Several may run: the second finds it done."""

    name = "claim-expiry"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.pause_s = machine.settings.claim_poll_delay_s
        self.full = machine.settings.loop_batch_size

    async def run_once(self) -> int:
        """Gives the runs of dead processes a lease, then resolves what has run out; returns how many."""
        db = self._machine.db
        await db.fetch(_SQL["bury_processes"], (self._machine.settings.stream_grace_s,))
        rows = await db.fetch(_SQL["expired_claims"], (self.full,))
        items = [Resolve(row[0], row[1], "exception", "claim-expired", EXPIRED) for row in rows[: self.full]]
        return await handle_all(self.name, items, self._expire)

    async def _expire(self, items: Sequence[Resolve]) -> int:
        await resolve_runs(self._machine, items)
        return len(items)
