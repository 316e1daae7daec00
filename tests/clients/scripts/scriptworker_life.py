"""PyPI scriptworker: claims a task, renews its claim and reports it, with its own code."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

import aiohttp
import slugid
import taskcluster
from common import CREDENTIALS, ROOT_URL, definition, run
from scriptworker.artifacts import (
    create_link_artifact,
    get_artifact_url,
    list_latest_artifacts,
    upload_artifacts,
)
from scriptworker.context import Context
from scriptworker.task import (
    claim_work,
    complete_task,
    get_run_id,
    get_task_id,
    prepare_to_run_task,
    reclaim_task,
)

queue = taskcluster.Queue({"rootUrl": ROOT_URL, "credentials": CREDENTIALS})


async def _uploads(work_dir: str) -> None:
    """What a task leaves behind: a log that is compressed, an archive, a private file, and a link."""
    task_id = slugid.nice()
    queue.createTask(
        task_id, {**definition("script/uploads", scopes=[]), "expires": taskcluster.fromNowJSON("2 days")}
    )
    files = {
        "public/logs/live_backing.log": b"line 1\n",
        "public/build/target.tar.bz2": b"\0" * 70_000,
        "private/a b.bin": b"x",
    }
    for name, data in files.items():
        path = os.path.join(work_dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    context = Context()
    context.config = {
        "provisioner_id": "script",
        "worker_type": "uploads",
        "worker_group": "g",
        "worker_id": "w",
        "taskcluster_root_url": ROOT_URL,
        "work_dir": work_dir,
        "artifact_dir": work_dir,
        "artifact_upload_timeout": 20,
        "reversed_statuses": {},
    }
    async with aiohttp.ClientSession() as session:
        context.session = session
        context.credentials = CREDENTIALS
        claim = (await claim_work(context))["tasks"][0]
        context.claim_task = claim
        prepare_to_run_task(context, claim)
        await upload_artifacts(context, list(files))
        await create_link_artifact(
            context, "public/logs/live.log", "public/logs/live_backing.log", "text/plain"
        )
        context.queue = context.create_queue(CREDENTIALS)
        for name, data in {**files, "public/logs/live.log": b"line 1\n"}.items():
            url = get_artifact_url(context, task_id, name)
            # What Python takes for an encoding of archives no client undoes.
            async with session.get(url, auto_decompress=not name.endswith("bz2")) as answer:
                assert (answer.status, await answer.read()) == (200, data), name
        listed = await list_latest_artifacts(context.queue, task_id)
        assert len(listed) == 4
        await complete_task(context, 0)


def artifacts() -> None:
    """Uploaded by its own functions, and found again."""
    with tempfile.TemporaryDirectory() as work_dir:
        asyncio.run(_uploads(work_dir))


async def _work(result: int, work_dir: str) -> dict[str, Any]:
    task_id = slugid.nice()
    queue.createTask(task_id, definition("script/worker", scopes=[]))
    context = Context()
    context.config = {
        "provisioner_id": "script",
        "worker_type": "worker",
        "worker_group": "g",
        "worker_id": "w",
        "taskcluster_root_url": ROOT_URL,
        "work_dir": work_dir,
        "reclaim_interval": 0.05,
        "reversed_statuses": {},
        "credentials": CREDENTIALS,
        "worker_implementation": "scriptworker",
        "invalid_reclaim_status": 10,
    }
    async with aiohttp.ClientSession() as session:
        context.session = session
        context.credentials = CREDENTIALS
        claim = (await claim_work(context))["tasks"][0]
        assert claim["status"]["taskId"] == task_id
        context.claim_task = claim
        prepare_to_run_task(context, claim)
        assert (get_task_id(claim), get_run_id(claim)) == (task_id, 0)
        renewing = asyncio.ensure_future(reclaim_task(context, context.task))
        while context.reclaim_task is None:
            assert not renewing.done(), renewing.exception()
            await asyncio.sleep(0.02)
        assert context.temp_credentials == context.reclaim_task["credentials"]
        renewing.cancel()
        await complete_task(context, result)
        # It is told by 409 that there is nothing left to report, and takes it.
        await complete_task(context, 1 - result if result in (0, 1) else 0)
    status: dict[str, Any] = queue.status(task_id)["status"]
    return status


def _ends(result: int, state: str, reason: str) -> None:
    with tempfile.TemporaryDirectory() as work_dir:
        status = asyncio.run(_work(result, work_dir))
    assert (status["runs"][0]["state"], status["runs"][0]["reasonResolved"]) == (state, reason), status


if __name__ == "__main__":
    run(
        {
            "artifacts": artifacts,
            "completed": lambda: _ends(0, "completed", "completed"),
            "failed": lambda: _ends(1, "failed", "failed"),
            "exception": lambda: _ends(3, "exception", "malformed-payload"),
        }
    )
