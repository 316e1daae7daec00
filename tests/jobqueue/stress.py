"""A stress client of the job queue: submits jobs, runs them with several workers, sees that each ran once.

    python tests/jobqueue/stress.py --url http://localhost:8080 --rabbitmq localhost:5672 \
        --num-jobs 300 --num-workers 8 --job-submit-delay 0 --worker-duration 0

Goes the way of the stress client of 2014: empties the broker's queue, submits from one thread, lets each
worker take messages (or, without `--rabbitmq`, read the list of pending jobs), claim, wait and complete, and
is done when no job is left open. It expects none to be open at its start and nobody else to read the queue.
Ends with status 0 if every job ran exactly once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from typing import Any, Protocol
from urllib.parse import urlsplit

import pika

MESSAGES = "jobs"
#: Pauses, in seconds: of a worker that finds nothing, and between two looks at what is open.
IDLE_S = 0.05
LOOK_S = 0.2


class Server:
    """One connection to the server, on which bodies are left unread unless they are wanted."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def post(self, path: str, body: object = None) -> int:
        """The status of an action."""
        return self._send("POST", path, None if body is None else json.dumps(body)).status

    def read(self, verb: str, path: str, body: object = None) -> Any:
        """The JSON of an answer that must be a good one."""
        response = self._send(verb, path, None if body is None else json.dumps(body))
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{verb} {path}: {response.status} {text!r}")
        return json.loads(text)

    def _send(self, verb: str, path: str, body: str | None) -> http.client.HTTPResponse:
        self._connection.request(verb, f"/0.1.0/{path}", body)
        return self._connection.getresponse()


class Source(Protocol):
    """Where a worker hears of jobs."""

    def next(self) -> str | None:
        """The id of a job that may be there to be had; None for nothing now."""
        ...


class Broker:
    """The queue of messages."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        where = pika.ConnectionParameters(host, int(port or 5672))
        self._channel = pika.BlockingConnection(where).channel()

    def empty(self) -> None:
        """Forgets what is left of earlier runs."""
        self._channel.queue_purge(MESSAGES)

    def next(self) -> str | None:
        """See Source."""
        method, _, body = self._channel.basic_get(MESSAGES, auto_ack=True)
        return None if method is None else str(json.loads(body)["job_id"])


class Poll:
    """The list of pending jobs; workers begin at different places in it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ahead: list[str] = []

    def next(self) -> str | None:
        """See Source."""
        if not self._ahead:
            self._ahead = [job["job_id"] for job in self._server.read("GET", "jobs?state=PENDING")]
            random.shuffle(self._ahead)
        return self._ahead.pop() if self._ahead else None


class Stress:
    """One run of everything."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.created: list[str] = []
        #: How often each job was claimed with success, and completed.
        self.claimed: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Returns when no job is open, or something failed."""
        options = self.options
        server = Server(options.url)
        before = server.read("GET", "jobs")
        if before:
            self.failures.append(f"{len(before)} jobs were open before the first was submitted")
            return
        if options.rabbitmq:
            Broker(options.rabbitmq).empty()
        submitting = threading.Thread(target=self._guarded, args=(self._submit,))
        workers = [
            threading.Thread(target=self._guarded, args=(self._work,)) for _ in range(options.num_workers)
        ]
        for thread in (submitting, *workers):
            thread.start()
        while not self.failures:
            submitted = not submitting.is_alive()
            if submitted and server.read("GET", "jobs") == []:
                break
            time.sleep(LOOK_S)
        self._stop.set()
        for thread in (submitting, *workers):
            thread.join()

    def _submit(self) -> None:
        server = Server(self.options.url)
        for _ in range(self.options.num_jobs):
            job = server.read("POST", "job/new", {"version": "0.1.0"})
            with self._lock:
                self.created.append(job["job_id"])
            if self._stop.wait(self.options.job_submit_delay):
                return

    def _work(self) -> None:
        options, server = self.options, Server(self.options.url)
        source: Source = Broker(options.rabbitmq) if options.rabbitmq else Poll(server)
        while not self._stop.is_set():
            job_id = source.next()
            if job_id is None:
                self._stop.wait(IDLE_S)
                continue
            if server.post(f"job/{job_id}/claim") != 200:
                continue
            with self._lock:
                self.claimed[job_id] += 1
            time.sleep(options.worker_duration)
            status = server.post(f"job/{job_id}/complete", {"task_result": {"exit_status": 0}})
            if status != 200:
                raise RuntimeError(f"job {job_id} could not be completed: {status}")
            with self._lock:
                self.completed[job_id] += 1

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as e:
            self.failures.append(f"{type(e).__name__}: {e}")

    def faults(self) -> list[str]:
        """What did not go as it must."""
        found = list(self.failures)
        if len(set(self.created)) != self.options.num_jobs:
            found.append(f"{len(set(self.created))} jobs of {self.options.num_jobs} were created")
        expected = Counter(self.created)
        for what, counts in (("claimed", self.claimed), ("completed", self.completed)):
            if counts != expected:
                missing, more = expected - counts, counts - expected
                found.append(f"{len(missing)} jobs were not {what}, {len(more)} more often than once")
        server = Server(self.options.url)
        open_jobs = server.read("GET", "jobs")
        if open_jobs:
            found.append(f"{len(open_jobs)} jobs are left open")
        unfinished = [i for i in self.created if server.read("GET", f"job/{i}")["state"] != "FINISHED"]
        if unfinished:
            found.append(f"{len(unfinished)} jobs are not finished")
        return found


def main(arguments: list[str]) -> int:
    """Runs, and says how it went."""
    parser = argparse.ArgumentParser(description="Push jobs through /0.1.0 and see that each runs once.")
    parser.add_argument("--url", default="http://localhost:8080", help="the server")
    parser.add_argument("--rabbitmq", default="", help="host:port of the broker; none: read the list of jobs")
    parser.add_argument("--num-jobs", type=int, default=10)
    parser.add_argument("--job-submit-delay", type=float, default=1.0, help="seconds between two jobs")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--worker-duration", type=float, default=5.0, help="seconds that a job takes")
    stress = Stress(parser.parse_args(arguments))
    started = time.monotonic()
    stress.run()
    took = time.monotonic() - started
    faults = stress.faults()
    for fault in faults:
        print(fault, file=sys.stderr)
    by = "the broker" if stress.options.rabbitmq else "the list"
    print(
        f"{len(stress.created)} jobs, {stress.options.num_workers} workers that asked {by}: "
        f"{stress.completed.total()} completed in {took:.1f} s; "
        f"{'each ran once' if not faults else 'something is wrong'}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
