"""One connection, driven by callbacks: pipelines of prepared statements, one round trip each.

psycopg connects, authenticates and turns results into rows; the talking is done here on its `pq`
layer. Why: a transaction of two round trips ([BEGIN, S1, S2], [S3, COMMIT]) over 1 / 32 / 256 rows costs
psycopg's cursors in a pipeline 310 / 490 / 2,080 µs of Python, and this 65 / 105 / 450; a single row
fetched, pool and all, 40 against 20. Most of the difference at 256 rows is made in `parameters`.
And because the answers are collected by callbacks and not by the waiting task, a cancelled waiter
leaves a connection that finishes what it was doing and can be used again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from psycopg import AsyncConnection, OperationalError, errors, pq
from psycopg.adapt import Transformer
from psycopg.types.json import set_json_loads

from server.store.parameters import encode

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Any]]

_FATAL = pq.ExecStatus.FATAL_ERROR
_SYNC = pq.ExecStatus.PIPELINE_SYNC
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED
_COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
_BINARY = pq.Format.BINARY
_BAD = pq.ConnStatus.BAD


class ConnectionLost(OperationalError):
    """The connection ended before an answer came; what was sent, if it was, may or may not have been done."""

    sent = True


class Wire:
    """A connection in pipeline mode; one round trip at a time. Made by `connect`."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pq = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._fd = self._pq.socket
        self._rows = Transformer(connection)
        self._prepared: dict[str, bytes] = {}
        self._names = 0
        self._closed = False
        self._suspect = False
        # The round trip under way, an entry per expected answer: None for an execution and for the closing
        # Sync, text and name for a statement being prepared.
        self._expected: deque[tuple[str, bytes] | None] = deque()
        self._answer: asyncio.Future[list[list[Row]]] | None = None
        self._found: list[list[Row]] = []
        self._error: Exception | None = None
        self._current: pq.abc.PGresult | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_waiter: asyncio.Future[None] | None = None
        self.failed_at = 0
        self.on_notify: Callable[[str, str, int], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self._pq.nonblocking = 1
        self._pq.enter_pipeline_mode()
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def connect(cls, dsn: str, **options: Any) -> Wire:
        """A new connection; options as for libpq. Raises psycopg.OperationalError when there is none."""
        connection: AsyncConnection[Any] = await AsyncConnection.connect(dsn, autocommit=True, **options)
        set_json_loads(orjson.loads, connection)
        return cls(connection)

    @property
    def closed(self) -> bool:
        """Closed by us or lost; it cannot be used again."""
        return self._closed

    @property
    def busy(self) -> bool:
        """An answer is still due, perhaps one that nobody waits for any more."""
        return bool(self._expected)

    @property
    def backend_pid(self) -> int:
        """The server process at the other end."""
        return self._pq.backend_pid

    @property
    def server_version(self) -> int:
        """As 180006 for 18.6."""
        return self._pq.server_version

    def usable(self) -> bool:
        """Whether an idle connection is still good, as far as can be told without asking the server."""
        if self._suspect and not self._closed:
            # Something arrived while nobody asked: most often the end of the connection.
            self._suspect = False
            self._loop.add_reader(self._fd, self._readable)
            try:
                # The first reads what the server had to say, the second meets the end behind it.
                for _ in range(2):
                    self._pq.consume_input()
                    self._pq.is_busy()
                if self._pq.status == _BAD:
                    raise OperationalError("the server closed the connection")
            except OperationalError as e:
                self._lose(e)
        return not self._closed

    def send(self, statements: Sequence[Statement], timeout: float) -> asyncio.Future[list[list[Row]]]:
        """Sends statements as one pipeline; the future has the rows of each.

        The first failing statement fails the future with its psycopg error, and those after it are not
        run; `failed_at` then tells its place. Without a BEGIN in it the pipeline is a transaction of its
        own. After `timeout` seconds without the whole answer the connection is closed. Encoding errors
        are raised at once, with nothing sent.
        """
        if not self.usable():
            lost = ConnectionLost("the connection had ended already")
            lost.sent = False
            raise lost
        if self._expected:
            raise RuntimeError("the connection is in the middle of a round trip")
        encoded = [(sql, *encode(parameters)) for sql, parameters in statements]
        expected = self._expected
        fresh: dict[str, bytes] = {}
        self._answer = answer = self._loop.create_future()
        self._found = []
        self._error = None
        try:
            for sql, values, formats in encoded:
                name = self._prepared.get(sql) or fresh.get(sql)
                if name is None:
                    self._names += 1
                    name = fresh[sql] = b"s%d" % self._names
                    self._pq.send_prepare(name, sql.encode())
                    expected.append((sql, name))
                self._pq.send_query_prepared(name, values or None, formats, _BINARY)
                expected.append(None)
            self._pq.pipeline_sync()
            expected.append(None)
            self._flush()
        except Exception as e:
            self._lose(e)
        else:
            if not answer.done():
                self._timer = self._loop.call_later(timeout, self._timed_out, timeout)
        return answer

    async def settle(self) -> None:
        """Waits for an answer that was abandoned, and drops it. Returns at once when none is due."""
        if self._expected:
            self._idle_waiter = self._loop.create_future()
            await self._idle_waiter

    @property
    def in_transaction(self) -> bool:
        """Between BEGIN and COMMIT, failed or not; only meaningful when no answer is due."""
        return self._pq.transaction_status != pq.TransactionStatus.IDLE

    def close(self) -> None:
        """Ends the connection now; an answer still due becomes ConnectionLost."""
        self._lose(None)

    def _flush(self) -> None:
        if self._pq.flush():
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        try:
            if not self._pq.flush():
                self._loop.remove_writer(self._fd)
        except OperationalError as e:
            self._lose(e)

    def _readable(self) -> None:
        try:
            if self._expected:
                self._pq.consume_input()
                self._collect()
            elif self.on_notify is not None:
                self._pq.consume_input()
                self._pq.is_busy()  # parses what came
            else:
                self._suspect = True
                self._loop.remove_reader(self._fd)  # or it would call us for ever
                return
            if self.on_notify is not None:
                self._notifications()
        except Exception as e:
            self._lose(e)

    def _notifications(self) -> None:
        while (notification := self._pq.notifies()) is not None:
            if self.on_notify is not None:
                payload = notification.extra.decode("utf-8", "replace")
                self.on_notify(notification.relname.decode(), payload, notification.be_pid)

    def _collect(self) -> None:
        """Takes the answers that are there, in order; the closing Sync ends the round trip."""
        silent = 0
        while not self._pq.is_busy():
            result = self._pq.get_result()
            if result is None:
                if self._current is not None:
                    self._take(self._current)
                    self._current = None
                    silent = 0
                else:
                    silent += 1
                    if silent > 1:
                        raise OperationalError("the server closed the connection")
            elif result.status == _SYNC:
                self._pq.get_result()  # nothing, but only after it does libpq count itself idle
                self._expected.clear()
                self._finish()
                return
            elif result.status in _COPY:
                raise OperationalError("COPY cannot be used here")
            else:
                self._current = result

    def _take(self, result: pq.abc.PGresult) -> None:
        fresh = self._expected.popleft()
        if result.status == _FATAL:
            if self._error is None:
                self._error = errors.error_from_result(result)
                self.failed_at = len(self._found)
        elif result.status == _ABORTED:
            pass
        elif fresh is not None:
            self._prepared[fresh[0]] = fresh[1]
        elif result.ntuples:
            try:
                self._rows.set_pgresult(result)
                rows = self._rows.load_rows(0, result.ntuples, tuple)
            except Exception as e:  # a value that Python has no room for, an infinite timestamp say
                rows = []
                if self._error is None:
                    self._error = e
                    self.failed_at = len(self._found)
            self._found.append(rows)
        else:
            self._found.append([])

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            if self._error is not None:
                answer.set_exception(self._error)
            else:
                answer.set_result(self._found)
        self._found = []
        waiter, self._idle_waiter = self._idle_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _timed_out(self, timeout: float) -> None:
        self._lose(OperationalError(f"no answer from the server within {timeout:.0f} s"))

    def _lose(self, cause: Exception | None) -> None:
        if self._closed:
            return
        self._closed = True
        # Closed sockets must not stay with the loop: their numbers are given again.
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._pq.finish()
        self._expected.clear()
        # A server that says goodbye properly says why; that error counts more than the closed socket.
        if self._error is None:
            self._error = ConnectionLost(str(cause) if cause is not None else "the connection was closed")
            self._error.__cause__ = cause
        self._finish()
        if cause is not None and self.on_lost is not None:
            self.on_lost()
