"""A real RabbitMQ for tests: the one of TCQUEUE_AMQP_URL, else the program of Debian's package, started
privately.

Fixtures: `rabbitmq` (one broker per session, started by the first test that asks; to be left as it was
found), `broker` (one of the test's own, to stop, kill and freeze), `amqp_prefix` (names of the test's own
for exchanges on the session's broker).
Without the program the tests that ask are skipped; in CI they fail.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest

_PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_CONTROL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
_START_S = 60.0


class Broker:
    """A RabbitMQ of our own: its own node name, ports, data and log."""

    def __init__(self, folder: Path, url: str = "") -> None:
        """`url` is that of a broker which runs already, and is not to be started or stopped."""
        self._url = url
        self.folder = folder
        self.port = _free_port()
        self._node = f"tcqueue-{uuid.uuid4().hex[:8]}@localhost"
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "ERL_EPMD_PORT": str(_free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }
        (folder / "plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text("loopback_users = none\nlog.console = false\n")

    @property
    def url(self) -> str:
        """Its default virtual host."""
        return self._url or f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Starts it; returns when it answers."""
        if self._names is None:
            # The one that it would start by itself would outlive it.
            self._names = subprocess.Popen(["epmd"], env=self._environment, stderr=subprocess.DEVNULL)
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [_PROGRAM],
                cwd=self.folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"RabbitMQ does not answer:\n{(self.folder / 'output').read_text()[-3000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """To all its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """Politely."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def control(self, *arguments: str) -> None:
        """An administrator's command."""
        subprocess.run(
            [_CONTROL, "-q", *arguments], env=self._environment, check=True, capture_output=True, timeout=60
        )

    def end(self) -> None:
        """Ends it and the name server beside it."""
        self.kill()
        if self._names is not None:
            self._names.kill()
            self._names.wait()
            self._names = None


def need() -> None:
    """Skips, or in CI fails, a test that asks for what is not installed."""
    if shutil.which("rabbitmq-server") is None or not Path(_PROGRAM).exists():
        message = "rabbitmq-server is not installed; Debian's package is enough"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Broker]:
    """The session's broker."""
    running = os.environ.get("TCQUEUE_AMQP_URL")
    if running:
        with tempfile.TemporaryDirectory(prefix="tcqueue-mq-") as folder:
            yield Broker(Path(folder), running)
        return
    need()
    with tempfile.TemporaryDirectory(prefix="tcqueue-mq-", ignore_cleanup_errors=True) as folder:
        broker = Broker(Path(folder))
        broker.start()
        yield broker
        broker.end()


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker to be ill-treated."""
    need()
    with tempfile.TemporaryDirectory(prefix="tcqueue-mq-", ignore_cleanup_errors=True) as folder:
        broker = Broker(Path(folder))
        broker.start()
        yield broker
        broker.end()


@pytest.fixture
def amqp_prefix() -> str:
    """Names of the test's own for exchanges on a broker that tests share."""
    return f"{uuid.uuid4().hex}/{{service}}/v1/"


def _free_port() -> int:
    """A port that nobody has, and that no outgoing connection gets in the seconds until it is taken."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
