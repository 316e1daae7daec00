"""New jobs as messages of a broker, one each, on the queue that workers of 2014 read (jobqueue.md 4).

Not part of the event log's relay: the message must be in the queue before the job's creator is answered, and
it means nothing once the job is claimed. What the broker has not confirmed stays noted in the database, and
server/loops/jobs.py sends it later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import orjson
import pika
import pika.exceptions
import structlog

from server.clock import Clock
from server.codec import jobs
from server.config import Settings
from server.errors import QueueError
from server.events.amqp import BrokerLost, Channel
from server.root_url import RootUrl
from server.store.batcher import Batcher
from server.store.database import Database
from server.store.statements import load
from tcqueue.v1.job_pb2 import Job

_SQL = load("jobs")
log = structlog.get_logger(__name__)

EXCHANGE = "jobs_xchg"
QUEUE = "jobs"

_RECONNECT_S = (0.5, 5.0)
"""Pause before another connection: at first, and at most."""

_FIRST_CONNECTION_S = 5.0
_CONFIRM_S = 5.0
"""A creator waits no longer than this for the broker."""

_BREAK_S = 2.0
"""So long is a connection waited for that was there a moment ago."""


class _Line:
    """A channel in confirm mode, and the messages on it that are not answered yet."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._tag = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[bool]]] = {}
        self._returned: set[str] = set()

    @classmethod
    async def on(cls, channel: Channel) -> _Line:
        """Makes the exchange, the queue and the binding, and turns confirms on. Raises BrokerLost."""
        raw = channel.raw
        await channel.call(raw.exchange_declare, exchange=EXCHANGE, exchange_type="direct")
        await channel.call(raw.queue_declare, queue=QUEUE)
        await channel.call(raw.queue_bind, queue=QUEUE, exchange=EXCHANGE, routing_key=QUEUE)
        line = cls(channel)
        raw.add_on_return_callback(line._on_return)
        await channel.call(raw.confirm_delivery, ack_nack_callback=line._on_answer)
        return line

    def publish(self, job_id: str, body: bytes, expiration_ms: int) -> asyncio.Future[bool]:
        """Sends a message; whether it is in the queue. Raises BrokerLost on a channel that has ended."""
        properties = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            expiration=str(expiration_ms),
            message_id=job_id,
        )
        try:
            self.channel.raw.basic_publish(EXCHANGE, QUEUE, body, properties, mandatory=True)
        except pika.exceptions.AMQPError as e:
            raise self.channel.lost or BrokerLost(str(e)) from e
        self._tag += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[self._tag] = (job_id, answer)
        return answer

    def end(self) -> None:
        """Nothing will be answered any more."""
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_result(False)
        self._waiting.clear()

    def _on_answer(self, frame: object) -> None:
        method = frame.method  # type: ignore[attr-defined]
        taken = not isinstance(method, pika.spec.Basic.Nack)
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._waiting if tag <= method.delivery_tag]
        for tag in tags:
            job_id, answer = self._waiting.pop(tag, ("", None))
            if answer is not None and not answer.done():
                answer.set_result(taken and job_id not in self._returned)
            self._returned.discard(job_id)

    def _on_return(self, _: object, __: object, properties: pika.BasicProperties, ___: bytes) -> None:
        """Somebody has deleted the queue; it is made anew with the next connection."""
        self._returned.add(properties.message_id or "")
        loop = asyncio.get_running_loop()
        loop.call_soon(self.channel.abort, BrokerLost("the queue of jobs is gone"))


class Announcer:
    """Keeps a connection to the broker from `start` to `stop`, and the queue of jobs there."""

    def __init__(self, db: Database, settings: Settings, root_url: RootUrl, clock: Clock) -> None:
        self._db = db
        self._url = settings.amqp_url
        self._address = settings.job_queue_external_addr
        self._task_queue_id = settings.job_queue_task_queue_id
        self._root_url = root_url
        self._clock = clock
        self._line: _Line | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._lost_at = 0.0
        self._last_error = ""
        self._task: asyncio.Task[None] | None = None
        #: Several at once are marked together.
        self._marks: Batcher[str, None] = Batcher("announced", self._mark, lanes=1)

    @property
    def connected(self) -> bool:
        """Whether the broker can be told, and of what address."""
        return self._line is not None and self._base() is not None

    async def start(self) -> None:
        """Makes the queue, or goes on trying when the broker does not answer soon."""
        self._task = asyncio.create_task(self._keep())
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CONNECTION_S):
                await self._tried.wait()

    async def stop(self) -> None:
        """Ends the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._marks.drain()

    async def announce(self, new: Sequence[Job]) -> None:
        """Tells the broker of jobs, and notes that it knows. Raises nothing: what it does not know within
        seconds it is told later."""
        told = await self.publish(new)
        for outcome in await self._marks.submit_many(told):
            if isinstance(outcome, Exception):
                # It will be told twice.
                log.warning("a job's message could not be noted", error=str(outcome))

    async def publish(self, waiting: Sequence[Job]) -> list[str]:
        """Tells the broker of pending jobs; the tasks of those that it has confirmed, or that have waited for
        longer than their message would."""
        await self._soon_up()
        line, base = self._line, self._base()
        if line is None or base is None:
            return []
        done: list[str] = []
        answers: dict[str, asyncio.Future[bool]] = {}
        now = self._clock.now().timestamp()
        try:
            for job in waiting:
                # Whole seconds: what has just been created has all of its time.
                age = max(0, int(now - job.entered_queue_time.ToNanoseconds() / 1e9))
                left = job.max_pending_seconds - age
                if left <= 0 and age:
                    done.append(job.task_id)
                else:
                    answers[job.task_id] = line.publish(job.job_id, _message(job, base), left * 1000)
        except BrokerLost as e:
            log.warning("a job's message could not be sent", error=e.text)
        if answers:
            _, silent = await asyncio.wait(answers.values(), timeout=_CONFIRM_S)
            if silent:
                # Others need not wait for it, too.
                line.channel.abort(BrokerLost(f"the broker has confirmed nothing for {_CONFIRM_S:g} s"))
        return [*done, *(task_id for task_id, told in answers.items() if told.done() and told.result())]

    async def _soon_up(self) -> None:
        """Waits a moment for a connection that was just lost, so that a broker's restart is not noticed."""
        if self._line is None and time.monotonic() - self._lost_at < _BREAK_S:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BREAK_S):
                    await self._up.wait()

    async def _keep(self) -> None:
        """A connection after the other."""
        first, longest = _RECONNECT_S
        pause = first
        while True:
            try:
                channel = await self._opened()
                line = _Line(channel)
                try:
                    line = self._line = await _Line.on(channel)
                    self._last_error, pause = "", first
                    self._tried.set()
                    self._up.set()
                    log.info("jobs are announced", queue=QUEUE)
                    await channel.ended()
                    raise channel.lost or BrokerLost("the connection ended")
                finally:
                    if self._line is not None:
                        self._lost_at = time.monotonic()
                    self._line = None
                    self._up.clear()
                    line.end()
                    await channel.close()
            except (BrokerLost, QueueError) as e:
                text = e.text if isinstance(e, BrokerLost) else e.message
                if text != self._last_error:
                    log.warning("jobs cannot be announced", error=text)
                self._last_error = text
            self._tried.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _opened(self) -> Channel:
        """A channel to a broker that has the queue, or lacks it and all messages that were in it: then every
        job that waits is to be announced again. That is noted before the queue is there to be found."""
        channel = await Channel.opened(self._url)
        try:
            await channel.call(channel.raw.queue_declare, queue=QUEUE, passive=True)
            return channel
        except BrokerLost as e:
            await channel.close()
            if not e.refused:
                raise
        except BaseException:
            await channel.close()
            raise
        await self._db.fetch(_SQL["announce_again"], (self._task_queue_id,), hot=True)
        return await Channel.opened(self._url)

    def _base(self) -> str | None:
        """What the URLs in messages begin with; None while this process does not know it."""
        if self._address:
            return f"http://{self._address}"
        return self._root_url.known or None

    async def _mark(self, task_ids: Sequence[str]) -> list[None]:
        await self._db.fetch(_SQL["mark_announced"], (list(task_ids),), hot=True)
        return [None] * len(task_ids)


def _message(job: Job, base: str) -> bytes:
    place = f"{base}/0.1.0/job/{job.job_id}"
    return orjson.dumps(
        {
            "job_id": job.job_id,
            "job": jobs.to_value(job),
            "claim": f"{place}/claim",
            "finish": f"{place}/finish",
        }
    )
