"""A worker that does its work in Python: it counts words, four texts at a time.

    tcqueue task create -q demo/words --payload '{"text": "to be or not to be"}'

Reads TCQUEUE_CLIENT_ADDRESS, TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN; Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import datetime

from server.client.channel import DEFAULT_ADDRESS, open_aio_channel
from server.client.credentials import Credentials
from server.client.errors import Failure
from server.client.held_runs import COMPLETED, MALFORMED_PAYLOAD, HeldRun, Result
from server.client.stream_worker import StreamWorker, WorkerId
from tcqueue.v1.task_pb2 import TaskState


async def count_words(run: HeldRun) -> Result:
    """The work. Being cancelled means that the run was revoked, or that the worker is to end."""
    text = run.payload.get("text")
    if not isinstance(text, str):
        return MALFORMED_PAYLOAD
    await asyncio.sleep(1)
    print(f"{run.task_id}: {len(text.split())} words", flush=True)
    return COMPLETED


class Quiet:
    """A listener that says only what an operator must know."""

    def claimed(self, run: HeldRun) -> None:
        """Nothing to say."""

    def renewed(self, run: HeldRun) -> None:
        """Nothing to say."""

    def revoked(self, run: HeldRun) -> None:
        print(f"{run.task_id} was taken away", flush=True)

    def resolved(self, run: HeldRun, state: TaskState.ValueType, error: str) -> None:
        if error:
            print(f"{run.task_id}: {error}", flush=True)

    def quarantined(self, until: datetime | None) -> None:
        print(f"quarantined until {until}" if until else "quarantined no longer", flush=True)

    def disconnected(self, failure: Failure, pause_s: float) -> None:
        print(f"{failure.message}; again in {pause_s:.1f} s", flush=True)

    def crashed(self, run: HeldRun, error: Exception) -> None:
        print(f"{run.task_id}: {error!r}", flush=True)


async def main() -> None:
    """Works until told to stop, then hands back what is not done."""
    credentials = Credentials.from_env(os.environ)
    identity = WorkerId(task_queue_id="demo/words", worker_group="examples", worker_id=f"words-{os.getpid()}")
    async with open_aio_channel(os.environ.get("TCQUEUE_CLIENT_ADDRESS", DEFAULT_ADDRESS)) as channel:
        worker = StreamWorker(channel, credentials, identity, count_words, Quiet(), slots=4)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        working = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            await worker.shut_down()
        await working


if __name__ == "__main__":
    asyncio.run(main())
