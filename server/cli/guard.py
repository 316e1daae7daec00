"""Stands between a worker and a task's command: ends the command when the worker is gone, even by SIGKILL.

Started by path with a bare interpreter (`python -I -S guard.py ARGV...`), so it imports next to
nothing and takes about 10 ms. Its standard input is a pipe that nobody writes to: end of file means
that the worker's end was closed. It leads the command's process group and exits as the command does.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def main() -> int:
    """Runs the command and returns its exit code: 128 and the signal's number for a killed one, 127 for no
    such program."""
    # The worker signals the whole group; this process must live to pass on how the command ended.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _nothing)
    ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, _nothing)
    child = os.fork()
    if child == 0:
        _become(sys.argv[1:])
    while True:
        readable, _, _ = select.select([0, ended], [], [])
        if 0 in readable:
            os.killpg(0, signal.SIGKILL)
        os.read(ended, 4096)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _nothing(number: int, frame: object) -> None:
    """A handler, unlike ignoring, is not inherited by the command."""


def _become(argv: list[str]) -> None:
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.execvp(argv[0], argv)
    except OSError as e:
        os.write(2, f"{argv[0]}: {e.strerror}\n".encode())
        os._exit(127 if e.errno == 2 else 126)


if __name__ == "__main__":
    sys.exit(main())
