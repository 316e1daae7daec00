-- The job queue of 2014. A job's state is that of its task's last run and stands nowhere else.

-- name: insert_job
-- Follows insert_tasks: what the task does not know. $1 task, $2 job as submitted, $3 priority,
-- $4 max_pending_seconds, $5 max_runtime_seconds, $6 results_server, $7 expires, $8 whether nobody is
-- to be told.
INSERT INTO jobs (task_id, job_object, priority, max_pending_seconds, max_runtime_seconds, results_server,
                  expires, announced)
VALUES ($1::text, $2::text, $3::smallint, $4::integer, $5::integer, $6::text, $7::timestamptz, $8::boolean)

-- name: read_job
-- A job. $1 task. Returns task, job, priority, max_pending_seconds, max_runtime_seconds, created, then of
-- the last run (nulls for none): state, started, resolved, worker group, worker id, and the results of
-- that run.
SELECT j.task_id, j.job_object, j.priority, j.max_pending_seconds, j.max_runtime_seconds, j.created,
       r.state, r.started, r.resolved, r.worker_group, r.worker_id,
       CASE WHEN j.results_run = t.last_run THEN j.results END
FROM jobs j
JOIN tasks t ON t.task_id = j.task_id
LEFT JOIN LATERAL (
    SELECT state, started, resolved, worker_group, worker_id FROM runs
    WHERE task_id = t.task_id AND run_id = t.last_run OFFSET 0
) r ON true
WHERE j.task_id = $1::text

-- name: read_job_standing
-- What a change to a job is checked against. $1 task. Returns task, queue, scheduler, group, last run.
SELECT t.task_id, t.task_queue_id, t.scheduler_id, t.task_group_id, t.last_run
FROM jobs j JOIN tasks t ON t.task_id = j.task_id
WHERE j.task_id = $1::text

-- name: list_jobs
-- The jobs of a queue whose run is pending or running, along the lists of those runs. $1 queue, $2
-- whether the pending ones, $3 whether the running ones. Columns as in read_job.
SELECT j.task_id, j.job_object, j.priority, j.max_pending_seconds, j.max_runtime_seconds, j.created,
       r.state, r.started, r.resolved, r.worker_group, r.worker_id, NULL::text
FROM (
    SELECT task_id, state, started, resolved, worker_group, worker_id FROM runs
    WHERE task_queue_id = $1::text AND state = 'pending' AND $2::boolean
    UNION ALL
    SELECT task_id, state, started, resolved, worker_group, worker_id FROM runs
    WHERE task_queue_id = $1::text AND state = 'running' AND $3::boolean
) r
CROSS JOIN LATERAL (
    SELECT task_id, job_object, priority, max_pending_seconds, max_runtime_seconds, created FROM jobs
    WHERE task_id = r.task_id OFFSET 0
) j

-- name: claim_jobs
-- Claims the pending runs of jobs, each for as long as the job may run. Follows lock_tasks. $1 task ids,
-- $2 worker group, $3 worker id, $4 seconds for a job that says 0.
-- Returns task, run and taken until of those claimed; the others are not pending, or past their deadline.
UPDATE runs r
SET state = 'running', worker_group = $2::text, worker_id = $3::text, by_name = false,
    started = date_trunc('milliseconds', now()), claimed = date_trunc('milliseconds', now()),
    taken_until = (
        SELECT date_trunc('milliseconds', now() + make_interval(
                   secs => coalesce(nullif(j.max_runtime_seconds, 0), $4::integer)::double precision))
        FROM jobs j WHERE j.task_id = r.task_id
    ),
    offered_until = NULL, stream_id = NULL, process_id = NULL
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'pending' AND r.deadline > now()
  AND r.run_id = (SELECT last_run FROM tasks WHERE task_id = r.task_id)
  AND EXISTS (SELECT FROM jobs WHERE task_id = r.task_id OFFSET 0)
RETURNING r.task_id, r.run_id, r.taken_until

-- name: judge_jobs
-- Where jobs stand; follows lock_tasks. $1 task ids. Returns task, last run, its state, worker group and
-- worker id.
SELECT i.task_id, t.last_run, r.state, r.worker_group, r.worker_id
FROM unnest($1::text[]) AS i (task_id)
CROSS JOIN LATERAL (SELECT task_id FROM jobs WHERE task_id = i.task_id OFFSET 0) j
CROSS JOIN LATERAL (SELECT last_run FROM tasks WHERE task_id = i.task_id OFFSET 0) t
LEFT JOIN LATERAL (
    SELECT state, worker_group, worker_id FROM runs WHERE task_id = i.task_id AND run_id = t.last_run OFFSET 0
) r ON true

-- name: store_results
-- What the last runs of these jobs left behind. $1 task ids, each once, $2 results.
UPDATE jobs j
SET results = ($2::text[])[array_position($1::text[], j.task_id)],
    results_run = (SELECT last_run FROM tasks WHERE task_id = j.task_id)
WHERE j.task_id = ANY ($1::text[])

-- name: take_unannounced
-- Jobs whose message the broker has not confirmed $1 seconds after their creation, oldest first; none
-- while another process is at it, which an advisory lock of this transaction tells: locks on the jobs
-- would keep their workers waiting for the broker. $2 how many. Columns as in read_job.
WITH lead AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(734611630517) AS mine
), due AS MATERIALIZED (
    SELECT task_id, created FROM jobs
    WHERE NOT announced AND created <= now() - make_interval(secs => $1::double precision)
      AND (SELECT mine FROM lead)
    ORDER BY created, task_id LIMIT $2::integer
)
SELECT j.task_id, j.job_object, j.priority, j.max_pending_seconds, j.max_runtime_seconds, j.created,
       r.state, r.started, r.resolved, r.worker_group, r.worker_id, NULL::text
FROM due d
CROSS JOIN LATERAL (
    SELECT task_id, job_object, priority, max_pending_seconds, max_runtime_seconds, created FROM jobs
    WHERE task_id = d.task_id OFFSET 0
) j
LEFT JOIN LATERAL (SELECT last_run FROM tasks WHERE task_id = d.task_id OFFSET 0) t ON true
LEFT JOIN LATERAL (
    SELECT state, started, resolved, worker_group, worker_id FROM runs
    WHERE task_id = d.task_id AND run_id = t.last_run OFFSET 0
) r ON true
ORDER BY d.created, d.task_id

-- name: mark_announced
-- The broker has these, or they are no longer worth a message. $1 task ids.
UPDATE jobs SET announced = true WHERE task_id = ANY ($1::text[])

-- name: announce_again
-- The broker has lost its queue: what waits in a queue of ours is to be told anew. $1 queue.
UPDATE jobs SET announced = false
WHERE task_id = ANY (ARRAY(SELECT task_id FROM runs WHERE task_queue_id = $1::text AND state = 'pending'))
  AND announced
