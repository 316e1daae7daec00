"""The demo, as `make demo` runs it: real processes, real work, one worker killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

TASKS = ["stubs", "lint", "unit-domain", "unit-identity", "wheel", "summary"]
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("TCQUEUE_")}


async def run_demo(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "demo", *options),
        stdout=PIPE,
        stderr=STDOUT,
        cwd=folder,
        env={**PLAIN, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_demo_completes_its_build_although_a_worker_is_killed(tmp_path: Path) -> None:
    code, output = await run_demo(tmp_path)
    assert code == 0, output
    for task in TASKS:
        assert re.search(rf"^ +\d+\.\d+s  {task} +run \d completed on demo/worker-\d$", output, re.M), output
    killed = re.search(r"SIGKILL for (worker-\d), which was running unit-domain", output)
    assert killed is not None, output
    assert "run 1 pending (run 0 was exception/claim-expired)" in output
    lost, retried = re.findall(
        rf"exception/claim-expired +demo/{killed[1]}|^ +1 +completed +\S+", output, re.M
    )
    assert killed[1] in lost and killed[1] not in retried
    assert re.search(r"lint +All checks passed!", output)
    assert re.search(r"wheel +tcqueue-\S+\.whl, \d+ files", output)
    assert re.search(r"all 6 tasks completed in .*, unit-domain in its second run", output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_demo_whose_work_fails_says_which_and_shows_its_log(tmp_path: Path) -> None:
    graph = tmp_path / "examples" / "build"
    graph.mkdir(parents=True)
    graph.joinpath("graph.json").write_text(
        '{"fine": {"payload": {"command": "true"}},'
        ' "broken": {"payload": {"command": "echo what went wrong; exit 3"}},'
        ' "never": {"payload": {"command": "true"}, "dependencies": ["broken"]}}'
    )
    code, output = await run_demo(tmp_path, "--no-kill", "--workers", "2", "--repository", str(tmp_path))
    assert code == 1, output
    assert "log of broken" in output
    assert "  what went wrong\n" in output
    assert "2 of 3 tasks did not complete" in output


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "demo"),
        stdout=PIPE,
        cwd=tmp_path,
        env={**PLAIN, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    while b" running on demo/worker-" not in (line := await process.stdout.readline()):
        assert line, "it ended before a task ran"
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


async def test_the_demo_needs_the_repository(tmp_path: Path) -> None:
    code, output = await run_demo(tmp_path, "--repository", str(tmp_path))
    assert code == 1
    assert "is not the repository of tcqueue" in output
