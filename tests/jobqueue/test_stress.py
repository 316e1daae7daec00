"""Some hundred jobs at once, and servers that die meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobqueue.conftest import Served
from tests.jobqueue.old_client import OldClient
from tests.jobqueue.stress import Stress
from tests.plugins.deployment import PLAIN, deployed
from tests.plugins.server import Queue


def _options(port: int, **changes: Any) -> argparse.Namespace:
    options = {"url": f"http://127.0.0.1:{port}", "rabbitmq": "", "job_submit_delay": 0.0}
    return argparse.Namespace(
        **{**options, "num_jobs": 300, "num_workers": 6, "worker_duration": 0.0, **changes}
    )


async def test_workers_that_poll(server: Served, modern: Queue) -> None:
    """4: without a broker the list of pending jobs is enough; of workers who all see it one gets each job."""
    stress = Stress(_options(server.port))
    await asyncio.to_thread(stress.run)
    assert await asyncio.to_thread(stress.faults) == []
    exchanges = (await modern.published()).exchanges
    assert exchanges.count("task-running") == exchanges.count("task-completed") == 300


async def test_faults_are_found(server: Served, old: OldClient) -> None:
    """The stress client sees what it is there to see."""
    stress = Stress(_options(server.port, num_jobs=3))
    await asyncio.to_thread(stress.run)
    stress.claimed[stress.created[0]] += 1
    del stress.completed[stress.created[1]]
    stress.created.append(await old.new())
    found = await asyncio.to_thread(stress.faults)
    assert found == [
        "4 jobs of 3 were created",
        "1 jobs were not claimed, 1 more often than once",
        "2 jobs were not completed, 0 more often than once",
        "1 jobs are left open",
        "1 jobs are not finished",
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a server's data. Not tmp_path: every session of pytest bars others from its parent again,
    PostgreSQL's user too."""
    with tempfile.TemporaryDirectory(prefix="tcqueue-jobs-") as made:
        yield Path(made)


@pytest.mark.timeout(120)
async def test_a_restart(folder: Path) -> None:
    """J-040: jobs in every state are there afterwards, with all they had."""
    shown = {}
    with deployed(folder) as (said, _):
        old = _client(said)
        ids = [await old.new({"n": n}) for n in range(4)]
        for job_id in ids[1:3]:
            assert await old.change(job_id, "claim") == 200
        assert await old.change(ids[2], "complete", {"done": True}) == 200
        assert await old.change(ids[3], "cancel") == 200
        shown = {job_id: await old.job(job_id) for job_id in ids}
        old.close()
    with deployed(folder) as (said, _):
        old = _client(said)
        assert {job_id: await old.job(job_id) for job_id in ids} == shown
        assert await old.jobs() == set(ids[:2])
        assert await old.change(ids[0], "claim") == 200
        assert await old.change(ids[1], "complete") == 200
        old.close()


@contextmanager
def _killed_later(folder: Path) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli", "serve", "--json"),
            *("--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=PLAIN,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(120)
async def test_kill_minus_nine(folder: Path) -> None:
    """J-040: what was answered with 200 is so after the server was killed in the middle of it all."""
    created: set[str] = set()
    claimed: set[str] = set()
    finished: set[str] = set()

    async def use(port: int) -> None:
        old = OldClient("127.0.0.1", port)
        while True:
            job_id = await old.new()
            created.add(job_id)
            if len(created) % 3 == 0:
                continue
            assert await old.change(job_id, "claim") == 200
            claimed.add(job_id)
            if len(claimed) % 2:
                assert await old.change(job_id, "complete", {"id": job_id}) == 200
                finished.add(job_id)

    with _killed_later(folder) as (said, process):
        port = int(said["http"].rpartition(":")[2])
        users = [asyncio.create_task(use(port)) for _ in range(4)]
        async with asyncio.timeout(40):
            while len(finished) < 30:
                await asyncio.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*users, return_exceptions=True)
        assert all(isinstance(outcome, OSError) for outcome in outcomes), outcomes
    with deployed(folder) as (said, _):
        old = _client(said)
        states = {job_id: await old.job(job_id) for job_id in created}
        for job_id, job in states.items():
            if job_id in finished:
                assert (job["state"], json.loads(job["job_results"])) == ("FINISHED", {"id": job_id})
            elif job_id in claimed:
                # Its end may have been stored, and the answer lost.
                assert job["state"] in ("RUNNING", "FINISHED")
        listed = await old.jobs()
        assert {job_id for job_id, job in states.items() if job["state"] != "FINISHED"} <= listed
        old.close()


def _client(said: dict[str, str]) -> OldClient:
    host, _, port = said["http"].rpartition(":")
    return OldClient(host, int(port))
