-- Plans must not depend on what the statistics happen to say: queue tables drain to empty and fill up
-- again behind the planner's back. So base tables are reached in three ways only, each of which has a
-- single possible plan on a hot connection: `key = ANY (array)`, a LATERAL look-up behind OFFSET 0, and
-- `ctid =` of a row this statement has locked. Values for a row are found by array_position, which for
-- a batch of 256 costs less than the join would. Constants of partial indexes (state = '...') are
-- written as a concatenation where that index must not be walked.

-- name: lock_tasks
-- First statement of every transition: takes the tasks, in id order, so that the statements after
-- it see them as they are and nobody changes them meanwhile. $1 task ids.
SELECT task_id FROM tasks WHERE task_id = ANY ($1::text[]) ORDER BY task_id FOR NO KEY UPDATE

-- name: resolve_runs
-- Resolves running runs that are the last of their task. $1 task ids, each once, $2 run ids, $3 states,
-- $4 reasons, $5 guards:
--   ''           whoever holds the run
--   'expired'    only if its claim or its stream's lease has run out and the deadline has not passed
--   anything else: only if that stream holds it
-- Returns one row for each run it resolved: task, reason created, worker, taken until, scheduled,
-- started, resolved, stream that held it.
UPDATE runs r
SET (state, reason_resolved, first_resolution) = (
        SELECT ($3::text[])[x.n], ($4::text[])[x.n],
               CASE WHEN ($4::text[])[x.n] IN ('worker-shutdown', 'intermittent-task', 'claim-expired')
                         AND (SELECT t.retries_left > 0 FROM tasks t WHERE t.task_id = r.task_id) THEN false
                    WHEN r.run_id = 0 THEN true
                    ELSE NOT EXISTS (
                        SELECT FROM runs e
                        WHERE e.task_id = r.task_id AND e.run_id < r.run_id AND e.first_resolution)
               END
        FROM (SELECT array_position($1::text[], r.task_id) AS n OFFSET 0) x
    ),
    resolved = date_trunc('milliseconds', now()), lease_until = NULL
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'running'
  AND (
    SELECT r.run_id = ($2::smallint[])[x.n]
       AND CASE ($5::text[])[x.n]
             WHEN '' THEN true
             WHEN 'expired' THEN (r.taken_until <= now() OR r.lease_until <= now()) AND r.deadline > now()
             ELSE r.stream_id = ($5::text[])[x.n]
           END
    FROM (SELECT array_position($1::text[], r.task_id) AS n OFFSET 0) x
  )
RETURNING r.task_id, r.reason_created, r.worker_group, r.worker_id, r.taken_until, r.scheduled, r.started,
          r.resolved, r.stream_id

-- name: retry_runs
-- Follows resolve_runs and finish_runs: where they ended a run for a reason that allows a retry, and the
-- task has one left, uses it up and adds the next run. $1 task ids, $2 reasons.
-- Returns those tasks, with the retries left now.
WITH due AS MATERIALIZED (
    SELECT i.task_id, i.ord, CASE i.reason WHEN 'intermittent-task' THEN 'task-retry' ELSE 'retry' END AS created
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS i (task_id, reason, ord)
    CROSS JOIN LATERAL (SELECT last_run FROM tasks WHERE task_id = i.task_id AND retries_left > 0 OFFSET 0) t
    CROSS JOIN LATERAL (
        SELECT FROM runs
        WHERE task_id = i.task_id AND run_id = t.last_run AND xmin = pg_current_xact_id()::xid
          AND state || '' = 'exception'
        OFFSET 0
    ) r
    WHERE i.reason IN ('worker-shutdown', 'intermittent-task', 'claim-expired')
), used AS (
    UPDATE tasks t SET last_run = t.last_run + 1, retries_left = t.retries_left - 1
    WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM due))
    RETURNING t.task_id, t.last_run, t.task_queue_id, t.priority, t.deadline, t.retries_left
), added AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT u.task_id, u.last_run, u.task_queue_id, 'pending', u.priority, u.deadline, d.created,
           date_trunc('milliseconds', now())
    FROM used u JOIN due d ON d.task_id = u.task_id
    ORDER BY d.ord
)
SELECT task_id, retries_left FROM used

-- name: read_unresolved
-- Why runs could not be resolved. $1 task ids, $2 run ids. Returns, for each input whose task exists:
-- ordinal, last run, state and reason of the run asked for (null: there is none).
SELECT i.ord, t.last_run, r.state, r.reason_resolved
FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS i (task_id, run_id, ord)
CROSS JOIN LATERAL (SELECT last_run FROM tasks WHERE task_id = i.task_id OFFSET 0) t
LEFT JOIN LATERAL (
    SELECT state, reason_resolved FROM runs WHERE task_id = i.task_id AND run_id = i.run_id OFFSET 0
) r ON true

-- name: end_tasks
-- Resolves tasks from outside, whatever state their last run is in; a task without runs gets run 0.
-- $1 task ids, $2 reason: 'canceled' (only before the deadline) or 'deadline-exceeded' (only $3
-- seconds after it). Returns task_id, run_id, process and stream that held the run.
WITH due AS MATERIALIZED (
    SELECT t.task_id, t.last_run, t.task_queue_id, t.priority, t.deadline
    FROM tasks t
    WHERE t.task_id = ANY ($1::text[])
      AND CASE $2::text WHEN 'canceled' THEN t.deadline >= now()
                        ELSE t.deadline + make_interval(secs => $3::double precision) <= now() END
), ended AS (
    UPDATE runs r
    SET state = 'exception', reason_resolved = $2::text, resolved = date_trunc('milliseconds', now()),
        lease_until = NULL, offered_until = NULL,
        first_resolution = NOT EXISTS (
            SELECT FROM runs e WHERE e.task_id = r.task_id AND e.run_id < r.run_id AND e.first_resolution)
    WHERE r.task_id = ANY (ARRAY(SELECT task_id FROM due))
      AND r.state || '' IN ('pending', 'running')
    RETURNING r.task_id, r.run_id, r.process_id, r.stream_id
), added AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created,
                      reason_resolved, scheduled, resolved, first_resolution)
    SELECT d.task_id, 0, d.task_queue_id, 'exception', d.priority, d.deadline, 'exception', $2::text,
           date_trunc('milliseconds', now()), date_trunc('milliseconds', now()), true
    FROM due d WHERE d.last_run < 0
    RETURNING task_id, run_id, process_id, stream_id
), marked AS (
    UPDATE tasks t SET last_run = 0
    WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM due WHERE last_run < 0))
)
SELECT * FROM ended UNION ALL SELECT * FROM added

-- name: release_dependents
-- Second half of every resolution: marks the edges that the tasks resolved by this very transaction
-- satisfy, and starts the dependents for which it was the last. $1 task ids, $2 their resolutions,
-- $3 most edges handled here; what is over goes to the backlog loop. Edges change only under the lock
-- of the task they wait for, so their ctid holds.
-- Returns the started tasks: id, queue, frame, priority, retries left, scheduled.
WITH resolved AS MATERIALIZED (
    SELECT i.task_id, i.resolution
    FROM unnest($1::text[], $2::text[]) AS i (task_id, resolution)
    CROSS JOIN LATERAL (
        SELECT state, xmin AS written_by FROM runs
        WHERE task_id = i.task_id ORDER BY run_id DESC LIMIT 1
    ) r
    WHERE r.written_by = pg_current_xact_id()::xid AND r.state NOT IN ('pending', 'running')
), open_edges AS MATERIALIZED (
    SELECT d.row_id, d.dependent_task_id
    FROM resolved x
    CROSS JOIN LATERAL (
        SELECT ctid AS row_id, dependent_task_id FROM task_dependencies
        WHERE required_task_id = x.task_id AND NOT satisfied AND expires > now()
          AND (x.resolution = 'completed' OR requires = 'all-resolved')
        OFFSET 0
    ) d
    LIMIT $3::integer
), backlog AS (
    INSERT INTO dependency_backlog (task_id, resolution)
    SELECT x.task_id, x.resolution FROM resolved x
    WHERE (SELECT count(*) FROM open_edges) >= $3::integer
    ON CONFLICT (task_id) DO UPDATE SET resolution = excluded.resolution
), satisfied AS (
    UPDATE task_dependencies d SET satisfied = true FROM open_edges e WHERE d.ctid = e.row_id
), counts AS MATERIALIZED (
    SELECT dependent_task_id AS task_id, count(*)::integer AS n FROM open_edges GROUP BY 1 ORDER BY 1
), held AS MATERIALIZED (
    SELECT t.*, c.n, t.blockers - c.n = 0 AND t.last_run < 0 AND t.deadline > now() AS starts
    FROM counts c
    CROSS JOIN LATERAL (
        SELECT task_id, task_queue_id, frame, priority, retries_left, blockers, last_run, deadline
        FROM tasks WHERE task_id = c.task_id FOR NO KEY UPDATE
    ) t
), freed AS (
    UPDATE tasks t
    SET (blockers, last_run) = (
        SELECT t.blockers - h.n, CASE WHEN h.starts THEN 0 ELSE t.last_run END
        FROM held h WHERE h.task_id = t.task_id
    )
    WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM held))
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled',
           date_trunc('milliseconds', now())
    FROM held WHERE starts ORDER BY task_id
)
SELECT task_id, task_queue_id, frame, priority, retries_left, date_trunc('milliseconds', now())
FROM held WHERE starts ORDER BY task_id

-- name: close_groups
-- Last part of every resolution: takes the tasks that this very transaction resolved for the first
-- time out of their groups' counters. $1 task ids.
-- Returns the groups with nothing left open: id, scheduler, expires, sealed.
WITH closing AS MATERIALIZED (
    SELECT t.task_group_id, count(*) FILTER (WHERE r.first_resolution)::integer AS n
    FROM unnest($1::text[]) AS i (task_id)
    CROSS JOIN LATERAL (
        SELECT first_resolution, state, xmin AS written_by FROM runs
        WHERE task_id = i.task_id ORDER BY run_id DESC LIMIT 1
    ) r
    CROSS JOIN LATERAL (SELECT task_group_id FROM tasks WHERE task_id = i.task_id OFFSET 0) t
    WHERE r.written_by = pg_current_xact_id()::xid AND r.state NOT IN ('pending', 'running')
    GROUP BY t.task_group_id
), closed AS (
    UPDATE task_groups g
    SET active = g.active - (SELECT c.n FROM closing c WHERE c.task_group_id = g.task_group_id)
    WHERE g.task_group_id = ANY (ARRAY(SELECT task_group_id FROM closing))
    RETURNING g.task_group_id, g.scheduler_id, g.expires, g.sealed, g.active
)
SELECT task_group_id, scheduler_id, expires, sealed FROM closed WHERE active <= 0

-- name: schedule_tasks
-- Gives unscheduled tasks their first run. $1 task ids. Returns the ids of those it started.
WITH due AS MATERIALIZED (
    SELECT task_id, task_queue_id, priority, deadline FROM tasks
    WHERE task_id = ANY ($1::text[]) AND last_run < 0 AND deadline >= now()
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled',
           date_trunc('milliseconds', now())
    FROM due ORDER BY task_id
)
UPDATE tasks t SET last_run = 0 WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM due)) RETURNING t.task_id

-- name: rerun_tasks
-- Gives resolved and unscheduled tasks one more run, and their retries anew as far as the limit of
-- 50 runs allows. $1 task ids. Returns the ids of those it started.
WITH due AS MATERIALIZED (
    SELECT t.task_id, t.task_queue_id, t.priority, t.deadline, t.last_run FROM tasks t
    WHERE t.task_id = ANY ($1::text[]) AND t.last_run < 49 AND t.deadline >= now()
      AND NOT EXISTS (
        SELECT FROM runs r
        WHERE r.task_id = t.task_id AND r.run_id = t.last_run AND r.state || '' IN ('pending', 'running') OFFSET 0
      )
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, last_run + 1, task_queue_id, 'pending', priority, deadline, 'rerun',
           date_trunc('milliseconds', now())
    FROM due ORDER BY task_id
)
UPDATE tasks t
SET last_run = t.last_run + 1, retries_left = least(t.retries, 48 - t.last_run)
WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM due)) RETURNING t.task_id

-- name: change_priorities
-- Changes the rank of tasks that were never resolved, and of their pending run. $1 task ids, $2 rank.
-- Returns id, old rank.
WITH due AS MATERIALIZED (
    SELECT t.task_id, t.priority FROM tasks t
    WHERE t.task_id = ANY ($1::text[]) AND t.deadline > now() AND t.priority <> $2::smallint
      AND NOT EXISTS (SELECT FROM runs r WHERE r.task_id = t.task_id AND r.first_resolution OFFSET 0)
), pending AS (
    UPDATE runs r SET priority = $2::smallint
    WHERE r.task_id = ANY (ARRAY(SELECT task_id FROM due)) AND r.state || '' = 'pending'
), changed AS (
    UPDATE tasks t SET priority = $2::smallint WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM due))
)
SELECT task_id, priority FROM due ORDER BY task_id

-- name: read_tasks
-- What statuses and events need of tasks. $1 task ids. Returns id, queue, frame, priority, retries left.
SELECT task_id, task_queue_id, frame, priority, retries_left
FROM tasks WHERE task_id = ANY ($1::text[]) ORDER BY task_id

-- name: read_standing
-- What a change to a task is checked against. $1 task id. Returns queue, scheduler, group, project,
-- deadline has passed, deadline is past or now, last run.
SELECT task_queue_id, scheduler_id, task_group_id, project_id, deadline < now(), deadline <= now(), last_run
FROM tasks WHERE task_id = $1::text

-- name: read_runs
-- All runs of tasks, in order. $1 task ids.
SELECT task_id, run_id, state, reason_created, reason_resolved, worker_group, worker_id, taken_until,
       scheduled, started, resolved
FROM runs WHERE task_id = ANY ($1::text[]) ORDER BY task_id, run_id

-- name: read_task_definitions
-- Definitions of tasks. $1 task ids. Returns id, definition, current priority.
SELECT task_id, definition, priority FROM tasks WHERE task_id = ANY ($1::text[]) ORDER BY task_id

-- name: insert_events
-- Writes a transaction's events, one row for all of them. $1 JSON list.
INSERT INTO outbox (events) VALUES ($1::text)

-- name: insert_dated_events
-- The same for events that do not know the time yet: the character U+0001, which JSON cannot hold as it
-- is, stands where it belongs. $1 JSON list, nearly.
INSERT INTO outbox (events)
VALUES (replace($1::text, chr(1), to_char(date_trunc('milliseconds', now()) AT TIME ZONE 'UTC',
                                          'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')))
