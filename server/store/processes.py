"""Processes of another system user, for the embedded PostgreSQL: accounts, permissions, signals.

PostgreSQL refuses to run as root. There it runs as a system user (`embedded_postgres`, made on
first use), and folders above the data that this user cannot pass get the search bit for others.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_USER = "embedded_postgres"


class ProcessError(Exception):
    """A program cannot be run as it must be, or failed; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Account:
    """A system user that PostgreSQL runs as; None stands for our own."""

    uid: int
    gid: int


def account_for(folder: Path) -> Account | None:
    """Whom PostgreSQL runs as: None for ourselves, or, when we are root, the folder's owner, else our
    own system user, else one that is there anyway. Raises ProcessError when there is none."""
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    if shutil.which("useradd") is not None and not _known(_USER):
        subprocess.run(["useradd", "--system", "--no-create-home", _USER], capture_output=True, check=False)
    for name in (_USER, "postgres", "nobody"):
        if _known(name):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise ProcessError(
        f"PostgreSQL does not run as root, and there is no user {_USER}; make one with useradd"
    )


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def open_way(path: Path) -> None:
    """Adds the search bit for others, and no more, where a folder on the way down lacks it."""
    for folder in (path, *path.parents):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def is_alive(pid: int) -> bool:
    """Whether the id belongs to any process, whoever's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_postgres(pid: int, cluster: Path | None = None) -> bool:
    """Whether the id belongs to a live postgres, no zombie; with `cluster`, to that folder's postmaster.

    Ids are given again, so nothing noted in a file may be signalled without this look.
    """
    if not Path("/proc/self/stat").exists():  # no Linux: ps is part of the system there
        arguments = output_of("ps", "-o", "command=", "-p", str(pid)).split(" ")
        live = "postgres" in arguments[0]
    else:
        fields = _proc_stat(pid)
        live = fields is not None and fields[0] == "postgres" and fields[1] != "Z"
        arguments = _proc_read(pid, "cmdline").split("\0")
    return live and (cluster is None or str(cluster) in arguments)


def children(pid: int) -> list[int]:
    """Ids of the processes that this one started."""
    if not Path("/proc/self/stat").exists():
        pairs = (line.split() for line in output_of("ps", "-A", "-o", "pid=,ppid=").splitlines())
        return [int(child) for child, parent in pairs if int(parent) == pid]
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [one for one in everyone if (fields := _proc_stat(one)) and fields[2] == str(pid)]


def _proc_stat(pid: int) -> tuple[str, str, str] | None:
    """Command, state and parent of a process, from /proc: slim images have no ps."""
    command, _, rest = _proc_read(pid, "stat").partition("(")[2].rpartition(")")
    if not rest:
        return None
    state, parent = rest.split()[:2]
    return command, state, parent


def _proc_read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def output_of(*command: str) -> str:
    """What a command prints, run as ourselves."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def send_signal(pid: int, number: int) -> None:
    """A signal to a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_until(condition: Callable[[], bool], patience: float) -> bool:
    """Blocks until the condition holds; False when it did not within so many seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def spawn(
    command: list[str],
    account: Account | None,
    *,
    cwd: Path,
    output: IO[bytes],
    stdin: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program as that user, output and errors into one file, without the caller's PG* variables."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    return subprocess.Popen(
        command,
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=cwd,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the owner, which then stops the server in its own good time
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def run(command: list[str], account: Account | None, *, cwd: Path, stdin: bytes = b"") -> None:
    """Runs a program as that user to its end. Raises ProcessError with its output when it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = spawn(command, account, cwd=cwd, output=output, stdin=given)
        if process.wait() != 0:
            output.seek(0)
            said = output.read().decode("utf-8", "replace").strip()
            raise ProcessError(f"{Path(command[0]).name} failed: {said}")
