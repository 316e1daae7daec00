-- Jobs of the job queue of January 2014: what a task does not know of the job that it is.

CREATE TABLE jobs (
    -- The task; its UUID in hyphenated form is the job's id.
    task_id             text COLLATE "C" PRIMARY KEY,
    -- JSON text, as it was submitted.
    job_object          text NOT NULL,
    priority            smallint NOT NULL,
    max_pending_seconds integer NOT NULL,
    max_runtime_seconds integer NOT NULL,
    results_server      text NOT NULL,
    created             timestamptz NOT NULL DEFAULT now(),
    -- The task's.
    expires             timestamptz NOT NULL,
    -- What the job left behind, JSON text, and the run that did.
    results             text,
    results_run         smallint,
    -- The broker has confirmed the message about the job, or there is no broker.
    announced           boolean NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- What the broker must still be told, oldest first.
CREATE INDEX jobs_unannounced ON jobs (created, task_id) WHERE NOT announced;
CREATE INDEX jobs_by_expires ON jobs USING brin (expires) WITH (pages_per_range = 32);
