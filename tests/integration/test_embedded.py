"""The embedded PostgreSQL: starts anywhere, owns its folder, survives every way of dying."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.store import embedded
from server.store.embedded import EmbeddedError, EmbeddedPostgres

OWNER = """
import sys, time
from server.store import embedded
server = embedded.start(sys.argv[1], fast=True)
print(server.pid, flush=True)
time.sleep(600)
"""


def ask(dsn: str, sql: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(sql.encode()).fetchone()
        return row[0] if row else None


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that owns a server in `tmp_path`; and the postmaster's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def test_data_survive_a_stop_and_durability_is_the_default(tmp_path: Path) -> None:
    server = embedded.start(tmp_path / "deep" / "data")
    for setting, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "autovacuum": "on",
        "listen_addresses": "",
        "max_connections": "200",
        "shared_buffers": "256MB",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
    }.items():
        assert ask(server.dsn, f"show {setting}") == value, setting
    assert ask(server.dsn, "select current_database() || ' ' || current_user") == "tcqueue postgres"
    assert ask(server.dsn, "select 'Z' < 'a' and lower('Ä') = 'ä'") is True
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("create table kept as select 42 as answer")
    server.stop()
    server.stop()
    with pytest.raises(EmbeddedError, match="not running"):
        _ = server.pid
    again = embedded.start(tmp_path / "deep" / "data")
    assert ask(again.dsn, "select answer from kept") == 42
    again.stop()


def test_child_processes_can_use_the_dsn(private_postgres: EmbeddedPostgres) -> None:
    code = "import psycopg, sys; print(psycopg.connect(sys.argv[1]).execute('select 7').fetchone()[0])"
    child = [sys.executable, "-W", "ignore", "-c", code, private_postgres.dsn]
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == "7\n"


def test_killed_and_restarted_it_has_what_was_committed(private_postgres: EmbeddedPostgres) -> None:
    dsn, first = private_postgres.dsn, private_postgres.pid
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table kept as select 42 as answer")
        private_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    private_postgres.kill()
    private_postgres.restart()
    assert private_postgres.dsn == dsn
    assert private_postgres.pid != first
    assert ask(dsn, "select answer from kept") == 42
    private_postgres.restart()
    assert ask(dsn, "select answer from kept") == 42


def test_a_postmaster_killed_by_others_is_restarted(private_postgres: EmbeddedPostgres) -> None:
    os.kill(private_postgres.pid, signal.SIGKILL)
    private_postgres.restart()
    assert ask(private_postgres.dsn, "select 1") == 1


def test_a_stale_pid_file_does_not_stop_the_start(private_postgres: EmbeddedPostgres) -> None:
    pid_file = private_postgres.data_dir / "postgres" / "postmaster.pid"
    stale = pid_file.read_text().splitlines()
    private_postgres.kill()
    for pid in (os.getppid(), 2**22 - 3):  # a live process that is no postgres, and none at all
        pid_file.write_text("\n".join([str(pid), *stale[1:]]) + "\n")
        private_postgres.restart()
        assert ask(private_postgres.dsn, "select 1") == 1
        private_postgres.kill()
    private_postgres.restart()


def test_a_folder_has_one_living_owner(tmp_path: Path, owner: tuple[subprocess.Popen[str], int]) -> None:
    with pytest.raises(EmbeddedError, match=f"another tcqueue is using {tmp_path}"):
        embedded.start(tmp_path)
    dsn = embedded.running_dsn(tmp_path)
    assert dsn is not None
    assert ask(dsn, "select 1") == 1


def test_a_killed_owners_server_is_replaced(tmp_path: Path, owner: tuple[subprocess.Popen[str], int]) -> None:
    process, postmaster = owner
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert embedded.running_dsn(tmp_path) is not None
    server = embedded.start(tmp_path, fast=True)
    assert server.pid != postmaster
    assert ask(server.dsn, "select 1") == 1
    server.stop()
    assert embedded.running_dsn(tmp_path) is None


def test_an_abandoned_server_can_be_ended(tmp_path: Path, owner: tuple[subprocess.Popen[str], int]) -> None:
    with pytest.raises(EmbeddedError, match="another tcqueue"):
        embedded.stop_abandoned(tmp_path)
    owner[0].kill()
    owner[0].wait()
    embedded.stop_abandoned(tmp_path)
    assert embedded.running_dsn(tmp_path) is None
    embedded.stop_abandoned(tmp_path)


def test_running_dsn_of_a_folder_without_a_server(tmp_path: Path) -> None:
    assert embedded.running_dsn(tmp_path) is None
    assert embedded.running_dsn(tmp_path / "nowhere") is None


def test_paths_too_long_for_a_socket_or_full_of_odd_characters(tmp_path: Path) -> None:
    for name in ("x" * 100, "ein Ö & so=weiter?"):
        server = embedded.start(tmp_path / name, fast=True)
        assert ask(server.dsn, "select 1") == 1
        assert embedded.running_dsn(tmp_path / name) == server.dsn
        server.stop()


def test_an_interrupted_first_start_is_begun_anew(tmp_path: Path) -> None:
    building = tmp_path / "postgres.new"
    building.mkdir()
    (building / "PG_VERSION").write_text("18\n")
    server = embedded.start(tmp_path, fast=True)
    assert ask(server.dsn, "select 1") == 1
    server.stop()
    assert not building.exists()


@pytest.mark.parametrize("content", ["17\n", None])
def test_a_cluster_of_another_version_is_left_alone(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "postgres").mkdir()
    if content is not None:
        (tmp_path / "postgres" / "PG_VERSION").write_text(content)
    with pytest.raises(EmbeddedError, match=r"belongs to PostgreSQL (17|\?), the embedded one is 18"):
        embedded.start(tmp_path)
    # And the lock is free again.
    with pytest.raises(EmbeddedError, match="belongs to"):
        embedded.start(tmp_path)


def test_a_server_that_cannot_start_says_why(private_postgres: EmbeddedPostgres) -> None:
    private_postgres.stop()
    control = private_postgres.data_dir / "postgres" / "global" / "pg_control"
    kept = control.read_bytes()
    control.write_bytes(b"\0" * len(kept))
    with pytest.raises(EmbeddedError, match=r"PostgreSQL did not start:\n(.*\n)*.*FATAL"):
        embedded.start(private_postgres.data_dir)


def test_without_the_wheel_the_error_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match="set DATABASE_URL"):
        embedded.start(tmp_path)
