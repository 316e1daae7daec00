-- name: prefer_indexes
-- Opens a reading transaction: what follows in it finds its rows by index, planned with the values
-- at hand. Pages are read in key order and cut short, and a planner that takes a full queue or group
-- for a small one would collect and sort all of it first.
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)

-- name: task_exists
-- One row if the task is known. $1 task.
SELECT 1 FROM tasks WHERE task_id = $1::text

-- name: read_definition
-- A task's definition and current priority. $1 task.
SELECT definition, priority FROM tasks WHERE task_id = $1::text

-- name: read_status
-- A task with its runs, all of one moment, a row a run (one with nulls for a task without).
-- $1 task. Columns as in list_statuses.
SELECT t.task_id, t.task_queue_id, t.frame, t.priority, t.retries_left, r.run_id, r.state,
       r.reason_created, r.reason_resolved, r.worker_group, r.worker_id, r.taken_until, r.scheduled,
       r.started, r.resolved
FROM tasks t LEFT JOIN runs r ON r.task_id = t.task_id
WHERE t.task_id = $1::text
ORDER BY r.run_id

-- name: list_statuses
-- The first tasks, by id, of those named, with their runs, a row a run. $1 ids, $2 how many tasks.
-- Returns id, queue, frame, priority, retries left, then the run.
SELECT t.task_id, t.task_queue_id, t.frame, t.priority, t.retries_left, r.run_id, r.state,
       r.reason_created, r.reason_resolved, r.worker_group, r.worker_id, r.taken_until, r.scheduled,
       r.started, r.resolved
FROM (
    SELECT task_id, task_queue_id, frame, priority, retries_left FROM tasks
    WHERE task_id = ANY ($1::text[]) ORDER BY task_id LIMIT $2::integer
) t
LEFT JOIN runs r ON r.task_id = t.task_id
ORDER BY t.task_id, r.run_id

-- Lists with definitions keep their pages small in bytes too: a row is on the page if it is among
-- the first so many and the definitions before it are together smaller than the budget. The first
-- column says whether rows are left after the page.

-- name: list_definitions
-- The first tasks, by id, of those named. $1 ids, $2 how many, $3 budget in bytes.
-- Returns more, id, definition, priority.
WITH ahead AS MATERIALIZED (
    SELECT task_id, definition, priority, row_number() OVER w AS n,
           sum(octet_length(definition)) OVER w - octet_length(definition) AS before
    FROM (
        SELECT task_id, definition, priority FROM tasks
        WHERE task_id = ANY ($1::text[]) ORDER BY task_id LIMIT $2::integer + 1
    ) x WINDOW w AS (ORDER BY task_id)
), page AS MATERIALIZED (
    SELECT * FROM ahead WHERE n <= $2::integer AND before < $3::bigint
)
SELECT (SELECT count(*) FROM ahead) > (SELECT count(*) FROM page), task_id, definition, priority
FROM page ORDER BY task_id

-- name: list_group
-- Tasks of a group with their runs, by task id, a row a run. $1 group, $2 id to begin after,
-- $3 how many tasks, $4 budget in bytes.
-- Returns more, id, queue, priority, retries left, definition (on a task's first row), then the run.
WITH ahead AS MATERIALIZED (
    SELECT x.*, row_number() OVER w AS n,
           sum(octet_length(definition)) OVER w - octet_length(definition) AS before
    FROM (
        SELECT task_id, task_queue_id, priority, retries_left, definition FROM tasks
        WHERE task_group_id = $1::text AND task_id > $2::text ORDER BY task_id LIMIT $3::integer + 1
    ) x WINDOW w AS (ORDER BY task_id)
), page AS MATERIALIZED (
    SELECT * FROM ahead WHERE n <= $3::integer AND before < $4::bigint
)
SELECT (SELECT count(*) FROM ahead) > (SELECT count(*) FROM page),
       p.task_id, p.task_queue_id, p.priority, p.retries_left,
       CASE WHEN coalesce(r.run_id, 0) = 0 THEN p.definition END, r.run_id, r.state, r.reason_created,
       r.reason_resolved, r.worker_group, r.worker_id, r.taken_until, r.scheduled, r.started, r.resolved
FROM page p LEFT JOIN runs r ON r.task_id = p.task_id
ORDER BY p.n, r.run_id

-- name: list_dependents
-- Tasks that wait, or waited, for a task, with their runs, by task id, a row a run; those that are
-- gone are left out. $1 task, $2 id to begin after, $3 how many tasks, $4 budget in bytes.
-- Returns the columns of list_group.
WITH ahead AS MATERIALIZED (
    SELECT x.*, row_number() OVER w AS n,
           sum(octet_length(definition)) OVER w - octet_length(definition) AS before
    FROM (
        SELECT t.task_id, t.task_queue_id, t.priority, t.retries_left, t.definition
        FROM task_dependencies d JOIN tasks t ON t.task_id = d.dependent_task_id
        WHERE d.required_task_id = $1::text AND d.dependent_task_id > $2::text AND d.expires > now()
        ORDER BY d.dependent_task_id LIMIT $3::integer + 1
    ) x WINDOW w AS (ORDER BY task_id)
), page AS MATERIALIZED (
    SELECT * FROM ahead WHERE n <= $3::integer AND before < $4::bigint
)
SELECT (SELECT count(*) FROM ahead) > (SELECT count(*) FROM page),
       p.task_id, p.task_queue_id, p.priority, p.retries_left,
       CASE WHEN coalesce(r.run_id, 0) = 0 THEN p.definition END, r.run_id, r.state, r.reason_created,
       r.reason_resolved, r.worker_group, r.worker_id, r.taken_until, r.scheduled, r.started, r.resolved
FROM page p LEFT JOIN runs r ON r.task_id = p.task_id
ORDER BY p.n, r.run_id

-- name: list_pending
-- Pending runs of a queue before their deadline, oldest first, whatever their priority. $1 queue,
-- $2 sequence number to begin after, $3 how many, $4 budget in bytes.
-- Returns more, task, run, sequence number, scheduled, definition, priority.
-- The claimers' index is ordered by priority, then age; each of the seven ranks gives its oldest and
-- the page is merged from them, so no index of its own is needed for this.
WITH ahead AS MATERIALIZED (
    SELECT x.*, t.definition, row_number() OVER w AS n,
           sum(octet_length(t.definition)) OVER w - octet_length(t.definition) AS before
    FROM (
        SELECT oldest.* FROM generate_series(1, 7) AS ranks (priority)
        CROSS JOIN LATERAL (
            SELECT r.task_id, r.run_id, r.seq, r.scheduled, r.priority FROM runs r
            WHERE r.task_queue_id = $1::text AND r.state = 'pending' AND r.priority = ranks.priority::smallint
              AND r.seq > $2::bigint AND r.deadline > now()
            ORDER BY r.seq LIMIT $3::integer + 1
        ) oldest
        ORDER BY oldest.seq LIMIT $3::integer + 1
    ) x JOIN tasks t ON t.task_id = x.task_id
    WINDOW w AS (ORDER BY x.seq)
), page AS MATERIALIZED (
    SELECT * FROM ahead WHERE n <= $3::integer AND before < $4::bigint
)
SELECT (SELECT count(*) FROM ahead) > (SELECT count(*) FROM page),
       task_id, run_id, seq, scheduled, definition, priority
FROM page ORDER BY n

-- name: list_claimed
-- Running runs of a queue by the time they were last claimed or reclaimed. $1 queue, $2 that time and
-- $3 the sequence number to begin after, $4 how many, $5 budget in bytes.
-- Returns more, task, run, worker group, worker id, claimed, sequence number, definition, priority.
WITH ahead AS MATERIALIZED (
    SELECT x.*, t.definition, t.priority, row_number() OVER w AS n,
           sum(octet_length(t.definition)) OVER w - octet_length(t.definition) AS before
    FROM (
        SELECT task_id, run_id, worker_group, worker_id, claimed, seq FROM runs
        WHERE task_queue_id = $1::text AND state = 'running'
          AND (claimed, seq) > ($2::timestamptz, $3::bigint)
        ORDER BY claimed, seq LIMIT $4::integer + 1
    ) x JOIN tasks t ON t.task_id = x.task_id
    WINDOW w AS (ORDER BY x.claimed, x.seq)
), page AS MATERIALIZED (
    SELECT * FROM ahead WHERE n <= $4::integer AND before < $5::bigint
)
SELECT (SELECT count(*) FROM ahead) > (SELECT count(*) FROM page),
       task_id, run_id, worker_group, worker_id, claimed, seq, definition, priority
FROM page ORDER BY n
