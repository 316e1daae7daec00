"""Large fan-outs: pages through the dependents that a resolution left over (queue.md 2.3; design 3)."""

from __future__ import annotations

from server.store.database import Transaction
from server.store.statements import load
from server.transitions.machine import Effects, Machine, dependents_started, insert_events

_SQL = load("loops")


class Dependencies:
    """Each round releases one page. The backlog row goes only with the last page, in its transaction, so
    a crash in between resumes where it was."""

    name = "dependencies"
    full = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.pause_s = machine.settings.dependency_poll_delay_s

    async def run_once(self) -> int:
        """Releases a page of dependents of one task; returns how many edges were settled."""
        page = self._machine.settings.dependency_page_size

        async def run(tx: Transaction) -> tuple[int, Effects]:
            effects = Effects()
            backlog = await tx.run(_SQL["take_backlog"])
            if not backlog:
                return 0, effects
            task_id, resolution = backlog[0]
            edges = await tx.run(_SQL["open_edges"], (task_id, resolution, page))
            ids = [row[0] for row in edges]
            rows = await tx.run(_SQL["release_page"], (task_id, ids))
            dependents_started(rows, effects)
            ending = [] if len(ids) == page else [(_SQL["drop_backlog"], (task_id,))]
            await tx.commit([*ending, *insert_events(effects)])
            return max(len(ids), 1), effects

        handled, effects = await self._machine.db.in_transaction(run)
        self._machine.tell(effects)
        return handled
