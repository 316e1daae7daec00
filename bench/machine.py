"""The machine while it is measured: cores, load, steal, and the CPU time of processes."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used so far by the server's processes and by Postgres."""

    server: float
    postgres: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.server - other.server, self.postgres - other.postgres)


def cpu_of(server: int, postgres: int) -> Cpu:
    """CPU time of both process trees, given the pids of their roots."""
    parents, times = _processes()
    trees = {server: 0.0, postgres: 0.0}
    for pid, used in times.items():
        ancestor = pid
        while ancestor in parents:
            # The embedded Postgres is a child of the server: the nearer root counts.
            if ancestor in trees:
                trees[ancestor] += used
                break
            ancestor = parents[ancestor]
    return Cpu(trees[server], trees[postgres])


def resident_kb(pid: int) -> int:
    """Resident memory of one process in kB, shared pages not counted."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError(f"no RssAnon for {pid}")


def describe() -> dict[str, object]:
    """What the figures were taken on, and how busy it was."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }


def steal_seconds() -> float:
    """Seconds of CPU time that the hypervisor has kept from this machine since it booted."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / _TICKS


def _processes() -> tuple[dict[int, int], dict[int, float]]:
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        # Time of its own, and of children it has waited for: backends come and go.
        times[int(entry.name)] = sum(int(field) for field in fields[11:15]) / _TICKS
    return parents, times
