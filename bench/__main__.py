"""Runs the benchmarks: `python -m bench [--quick]`; prints a table and writes bench/latest.json."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import psycopg

from bench import artifacts, backlog, ceiling, codec, machine, wire

ROOT = Path(__file__).parent
_COMPILED = ("lives", "creates", "pickup")  # modes of load/main.go
SERVER_COMMAND = (sys.executable, "-m", "bench.server")


@dataclass(slots=True)
class Target:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    http_address: str
    dsn: str
    server_pid: int
    postgres_pid: int
    folder: Path

    def cpu(self) -> machine.Cpu:
        """CPU seconds of server and Postgres so far."""
        return machine.cpu_of(self.server_pid, self.postgres_pid)


@dataclass(slots=True)
class Report:
    """Figures by name, and the lines people read."""

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, note: str = "") -> None:
        """Records a figure and shows it at once."""
        self.figures[name] = round(value, 3)
        print(f"  {name:<28} {value:>12,.2f} {unit:<10} {note}", flush=True)


@contextmanager
def server(**variables: str) -> Iterator[Target]:
    """A fresh embedded instance in a process of its own, with these further settings."""
    with tempfile.TemporaryDirectory(prefix="tcqueue-bench-") as folder:
        process = subprocess.Popen(
            [*SERVER_COMMAND, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        try:
            said = json.loads(_line(process.stdout))
            yield Target(
                process,
                f"127.0.0.1:{said['port']}",
                f"127.0.0.1:{said['http_port']}",
                said["dsn"],
                said["server"],
                said["postgres"],
                Path(folder),
            )
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@cache
def compiled_driver() -> Path | None:
    """The compiled driver, built anew; None without Go. The Python one takes a quarter of two cores, which
    the server then lacks."""
    go = shutil.which("go")
    if go is None:
        return None
    binary = ROOT / "load" / "load"
    subprocess.run([go, "build", "-o", str(binary), "."], cwd=binary.parent, check=True)
    return binary


def drive(target: Target, mode: str, queue: str, **options: Any) -> Any:
    """Runs a driver to its end and returns what it measured."""
    options.update(address=target.address, queue=queue)
    command = [sys.executable, "-m", "bench.driver", mode]
    binary = compiled_driver() if mode in _COMPILED else None
    if binary is not None:
        command = [str(binary), mode]
        options["authorization"] = dict(wire.metadata())["authorization"]
        options["definition"] = b64encode(wire.definition(queue)).decode()
    done = subprocess.run([*command, json.dumps(options)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def drive_http(target: Target, mode: str, queue: str, **options: Any) -> Any:
    """The same with a driver of the HTTP door."""
    arguments = json.dumps({"address": target.http_address, "queue": queue, **options})
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_driver", mode, arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer rounds, a smaller backlog")
    parser.add_argument("--only", default="", help="names of parts, comma separated: " + ", ".join(PARTS))
    options = parser.parse_args()
    left_out = LONG if options.quick else frozenset()
    named = options.only.split(",") if options.only else PARTS.keys() - left_out
    chosen = [name for name in PARTS if name in named]
    driver = "Go" if compiled_driver() else "Python"
    report = Report(details={"machine": machine.describe(), "quick": options.quick, "grpc_driver": driver})
    print(f"tcqueue bench on {report.details['machine']}")
    steal, began = machine.steal_seconds(), time.monotonic()
    for name in chosen:
        print(f"{name}:", flush=True)
        PARTS[name](report, options.quick)
    report.details["steal_s"] = round(machine.steal_seconds() - steal, 1)
    report.details["load_after_1m"] = machine.describe()["load_1m"]
    report.details["took_s"] = round(time.monotonic() - began)
    (ROOT / "latest.json").write_text(
        json.dumps({**report.figures, "details": report.details}, indent=2) + "\n"
    )
    took, stolen = report.details["took_s"], report.details["steal_s"]
    print(f"took {took} s, {stolen} s stolen; written to bench/latest.json")


def lives(report: Report, quick: bool) -> None:
    """Whole lives per second, and what the same Postgres does with the bare SQL."""
    seconds, rounds = (4, 1) if quick else (8, 3)
    with server() as target:
        singles = [(1, 4), (8, 16), (64, 64)] if not quick else [(64, 64)]
        for workers, callers in singles:
            name = f"lives_per_s_single_{workers}"
            _rates(
                report,
                target,
                name,
                rounds,
                workers=workers,
                slots=1,
                batch=1,
                callers=callers,
                seconds=seconds,
            )
        _rates(
            report, target, "lives_per_s_batch_32x16", rounds,
            workers=16, slots=16, batch=32, callers=16, seconds=seconds,
        )  # fmt: skip
        bare = {}
        for batch, clients in ((1, 8), (1, 32), (32, 1), (32, 2)):
            rates = [
                ceiling.lives_per_second(target.dsn, batch=batch, clients=clients, seconds=seconds)
                for _ in range(rounds)
            ]
            bare[batch, clients] = statistics.median(rates)
            report.add(
                f"pgbench_{batch}x{clients}", bare[batch, clients], "lives/s", "bare SQL, same Postgres"
            )
        best = max(bare[32, 1], bare[32, 2])
        report.add("batch_over_pgbench", report.figures["lives_per_s_batch_32x16"] / best, "ratio")
        report.add(
            "single_over_pgbench",
            report.figures["lives_per_s_single_64"] / max(bare[1, 8], bare[1, 32]),
            "ratio",
        )


def creates(report: Report, quick: bool) -> None:
    """Unary creations per second."""
    with server() as target:
        rates = [
            drive(target, "creates", f"bench/c{i}", callers=32, seconds=4) for i in range(1 if quick else 3)
        ]
        report.add("creates_per_s_32", statistics.median(rates), "creates/s")


def pickup(report: Report, quick: bool) -> None:
    """Latency from CreateTask's return to the claim's arrival, on an idle queue."""
    with server() as target:
        times = drive(target, "pickup", "bench/pickup", count=200 if quick else 1000)
        for key, prefix in (("from_call", "pickup"), ("from_return", "pickup_after_return")):
            cuts = statistics.quantiles(times[key], n=100)
            for percent in (50, 95, 99):
                report.add(
                    f"{prefix}_p{percent}_ms",
                    cuts[percent - 1],
                    "ms",
                    key.replace("_", " ") + " of CreateTask",
                )


def idle_streams(report: Report, quick: bool) -> None:
    """Memory and queries of idle streams, each on its own connection."""
    for streams in (1000,) if quick else (1000, 5000):
        with server() as target:
            time.sleep(1.0)
            before = machine.resident_kb(target.server_pid)
            driver = subprocess.Popen(
                [
                    sys.executable, "-m", "bench.driver", "idle",
                    json.dumps({"address": target.address, "queue": "bench/idle", "streams": streams}),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            _line(driver.stdout)
            # Backends report what they did up to ten seconds late; the opening must not count as idling.
            time.sleep(12.0)
            after = machine.resident_kb(target.server_pid)
            first, began, cpu = _statements(target.dsn), time.monotonic(), target.cpu()
            time.sleep(5.0)
            elapsed = time.monotonic() - began
            per_second = (_statements(target.dsn) - first) / elapsed
            used = (target.cpu() - cpu).server / elapsed
            driver.communicate("")
            report.add("kb_per_idle_stream", (after - before) / streams, "kB", f"{streams} streams")
            report.add(
                f"idle_queries_per_s_{streams}",
                per_second,
                "1/s",
                "whole server, heartbeats and loops included",
            )
            report.add(f"idle_cpu_percent_{streams}", used * 100, "%", "of one core, server")


def claim_cost(report: Report, quick: bool) -> None:
    """Time of one claim at a small and at a large backlog."""
    large = 200_000 if quick else 1_000_000
    with server() as target:
        medians = {}
        for size in (10_000, large):
            queue = f"bench/backlog{size}"
            backlog.fill(target.dsn, queue, size)
            rounds = [statistics.median(drive(target, "claim_cost", queue, count=200)) for _ in range(3)]
            medians[size] = statistics.median(rounds)
            report.add(f"claim_ms_at_{size}", medians[size], "ms", "median of unary claims of one run")
        report.details["claim_cost_large_backlog"] = large
        report.add(
            "claim_cost_1m_over_10k", medians[large] / medians[10_000], "ratio", f"{large:,} over 10,000"
        )


def http(report: Report, quick: bool) -> None:
    """The life over HTTP, signed, from 32 clients; and how soon a waiting claimWork is answered."""
    seconds, rounds = (4, 1) if quick else (8, 3)
    with server() as target:
        for name, mode, each in (
            ("http_lives_per_s_32", "lives", "life"),
            ("http_creates_per_s_32", "creates", "create"),
            ("http_gateway_calls_per_s_32", "signed", "gateway_call"),
        ):
            cpu = target.cpu()
            runs = [
                drive_http(target, mode, f"bench/{mode}{i}", clients=32, seconds=seconds)
                for i in range(rounds)
            ]
            used, done = target.cpu() - cpu, sum(run["done"] for run in runs)
            report.add(name, statistics.median(run["rate"] for run in runs), "1/s")
            alone = mode == "signed"
            note = "of it the gateway: routing, Hawk, JSON" if alone else "gateway and all behind it"
            report.add(f"http_{each}_cpu_us_server", used.server / done * 1e6, "µs", note)
            if not alone:
                report.add(f"http_{each}_cpu_us_postgres", used.postgres / done * 1e6, "µs")
        rates = [
            drive_http(target, "claims", f"bench/claims{i}", clients=32, count=6400) for i in range(rounds)
        ]
        report.add("http_claims_per_s_32x32", statistics.median(rates), "claims/s")
        times = drive_http(target, "wakeup", "bench/wakeup", count=200 if quick else 1000)
        for key, prefix in (("from_call", "http_wakeup"), ("from_return", "http_wakeup_after_return")):
            cuts = statistics.quantiles(times[key], n=100)
            for percent in (50, 95, 99):
                note = f"{key.replace('_', ' ')} of createTask"
                report.add(f"{prefix}_p{percent}_ms", cuts[percent - 1], "ms", note)


def artifact_store(report: Report, quick: bool) -> None:
    """Artifacts: creations, bytes through the disk store beside the disk itself, lists, expiry."""
    rounds, count = (1, 20_000) if quick else (3, 100_000)
    with server() as target:
        cpu = target.cpu()
        runs = [
            drive_http(target, "artifacts", f"bench/artifacts{i}", clients=32, seconds=4 if quick else 8)
            for i in range(rounds)
        ]
        used, done = target.cpu() - cpu, sum(run["done"] for run in runs)
        each = (used.server / done * 1e6, used.postgres / done * 1e6)
        note = f"CPU each: {each[0]:.0f} µs server, {each[1]:.0f} µs Postgres"
        report.add("artifact_creates_per_s_32", statistics.median(run["rate"] for run in runs), "1/s", note)
        moved = artifacts.gigabyte(target.http_address, target.server_pid, target.folder, rounds)
        median = {name: statistics.median(values) for name, values in moved.items()}
        report.add("artifact_up_mb_per_s", median["up"], "MB/s", "a gigabyte by curl, synced to the disk")
        report.add(
            "artifact_up_over_dd", median["up"] / median["dd"], "ratio", f"dd: {median['dd']:.0f} MB/s"
        )
        report.add("artifact_up_memory_mb", max(moved["up_mb"]), "MB", "most that the server grew")
        report.add("artifact_down_mb_per_s", median["down"], "MB/s", "a gigabyte by curl")
        note = f"cat into a pipe: {median['cat']:.0f} MB/s"
        report.add("artifact_down_over_cat", median["down"] / median["cat"], "ratio", note)
        report.add("artifact_down_memory_mb", max(moved["down_mb"]), "MB", "most that the server grew")
        first, last = artifacts.pages(target.http_address, target.dsn, count)
        report.add("artifact_page_ms", statistics.median(first), "ms", f"1,000 of {count:,} artifacts")
        report.add(
            "artifact_pages_last_over_first", statistics.median(last) / statistics.median(first), "ratio"
        )
        rate = artifacts.expiry(target.dsn, target.folder / "expiry", count)
        report.add("artifact_expiry_per_s", rate, "1/s", f"{count:,} artifacts with a file each")


def event_relay(report: Report, quick: bool) -> None:
    """Events to RabbitMQ on this machine, into a durable queue."""
    if shutil.which("rabbitmq-server") is None:
        print("  rabbitmq-server is not installed: left out")
        return
    from bench import relay

    count, rounds = (20_000, 1) if quick else (200_000, 3)
    rates: dict[bool, list[float]] = {False: []} if quick else {False: [], True: []}
    for _ in range(rounds):
        for elders, found in rates.items():
            with relay.broker() as url, server() as target:
                found.append(relay.drain(target.dsn, url, count, elders=elders))
    note = f"{count:,} waiting, with confirms, today's exchanges only"
    report.add("relay_events_per_s", statistics.median(rates[False]), "1/s", note)
    if not quick:
        note = "the same with the exchanges of 2014, as by default"
        report.add("relay_events_with_elders_per_s", statistics.median(rates[True]), "1/s", note)
    with relay.broker() as url, server(TCQUEUE_AMQP_URL=url) as target:
        lag = relay.Lag(url)
        rate = drive(
            target, "lives", "bench/lag", workers=12, slots=1, batch=1, callers=12, seconds=4 if quick else 15
        )
        cuts = statistics.quantiles(lag.end(), n=100)
        for percent in (50, 99):
            note = f"from the end of a run to a consumer, at {rate:.0f} lives/s"
            report.add(f"relay_lag_p{percent}_ms", cuts[percent - 1], "ms", note)


def codec_beside_json_format(report: Report, quick: bool) -> None:
    """What JSON costs, ours and protobuf's own."""
    for name, value in codec.measure().items():
        report.add(name, value, "times" if name.endswith("_ratio") else "µs")


def _rates(report: Report, target: Target, name: str, rounds: int, **options: Any) -> None:
    rates, cpu, began = [], target.cpu(), time.monotonic()
    for i in range(rounds):
        rates.append(drive(target, "lives", f"bench/{name.replace('_', '-')[-20:]}{i}", **options))
    used, took = target.cpu() - cpu, time.monotonic() - began
    total = statistics.mean(rates) * took
    micros = f"{used.server / total * 1e6:.0f} µs server, {used.postgres / total * 1e6:.0f} µs Postgres"
    note = f"CPU a life, about: {micros}"
    report.add(name, statistics.median(rates), "lives/s", note)


def _statements(dsn: str) -> int:
    """Transactions of the database so far, our own look included."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        return int(row[0])


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("a process ended before it was ready")
    return line


PARTS: dict[str, Callable[[Report, bool], None]] = {
    "lives": lives,
    "creates": creates,
    "pickup": pickup,
    "idle_streams": idle_streams,
    "claim_cost": claim_cost,
    "http": http,
    "artifacts": artifact_store,
    "relay": event_relay,
    "codec": codec_beside_json_format,
}

#: What does not fit into two minutes; `--only` still runs it.
LONG = frozenset({"artifacts", "relay"})

if __name__ == "__main__":
    main()
