"""Deadlines: tasks unresolved some time after their deadline are resolved for it (queue.md 2.7)."""

from __future__ import annotations

from collections.abc import Sequence

from server.loops.base import handle_all
from server.store.statements import load
from server.transitions.ending import exceed_deadlines
from server.transitions.machine import Machine

_SQL = load("loops")


class Deadlines:
    """Each round handles up to a batch, the longest overdue first."""

    name = "deadlines"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.pause_s = machine.settings.deadline_poll_delay_s
        self.full = machine.settings.loop_batch_size

    async def run_once(self) -> int:
        """Resolves what is overdue; returns how many tasks that were."""
        settings = self._machine.settings
        rows = await self._machine.db.fetch(_SQL["overdue_tasks"], (settings.deadline_delay_s, self.full))
        return await handle_all(self.name, [row[0] for row in rows], self._exceed)

    async def _exceed(self, task_ids: Sequence[str]) -> int:
        return len(await exceed_deadlines(self._machine, task_ids))
