-- name: ensure_groups
-- Makes the groups that do not exist yet, with the scheduler and expiry of their first task.
-- $1 group ids, $2 scheduler ids, $3 expiries of the tasks; one element a task, in call order.
-- A group id whose row has expired away may still have tasks, so the counter starts with those. No
-- group outlives the calendar: later dates could not be read back.
INSERT INTO task_groups (task_group_id, scheduler_id, expires, active)
SELECT n.task_group_id, n.scheduler_id, least(n.expires + interval '1 hour', timestamptz '9999-12-31 23:59:59.999+00'),
       (SELECT count(*) FROM tasks t
        WHERE t.task_group_id = n.task_group_id
          AND NOT EXISTS (SELECT FROM runs r WHERE r.task_id = t.task_id AND r.first_resolution OFFSET 0))
FROM (
    SELECT DISTINCT ON (i.task_group_id) i.task_group_id, i.scheduler_id, i.expires
    FROM unnest($1::text[], $2::text[], $3::timestamptz[])
         WITH ORDINALITY AS i (task_group_id, scheduler_id, expires, ord)
    ORDER BY i.task_group_id, i.ord
) n
WHERE NOT EXISTS (SELECT FROM task_groups g WHERE g.task_group_id = n.task_group_id)
ON CONFLICT (task_group_id) DO NOTHING

-- name: lock_dependencies
-- Holds the required tasks as they are until this transaction ends, so that each of them either
-- resolves before (and is seen resolved) or after (and sees the new edge).
-- $1 task ids.
SELECT task_id FROM tasks WHERE task_id = ANY ($1::text[]) ORDER BY task_id FOR SHARE

-- name: read_dependencies
-- What creation needs to know of required tasks, to be read after lock_dependencies.
-- $1 task ids. Returns task_id, expires, state of the last run (null if unscheduled).
SELECT t.task_id, t.expires, r.state
FROM tasks t
LEFT JOIN LATERAL (
    SELECT state FROM runs WHERE task_id = t.task_id AND run_id = t.last_run OFFSET 0
) r ON true
WHERE t.task_id = ANY ($1::text[])

-- name: insert_tasks
-- Inserts the tasks whose group admits them and whose id is free, and a pending run for each that
-- has nothing to wait for. $1 ids ... one array a column.
-- Returns the id of each inserted task, and now; `judge_tasks` tells why another was not.
WITH created AS (
    INSERT INTO tasks (task_id, task_queue_id, task_group_id, scheduler_id, project_id, priority, deadline,
                       expires, retries, retries_left, last_run, blockers, requires, definition, frame)
    SELECT i.task_id, i.task_queue_id, i.task_group_id, i.scheduler_id, i.project_id, i.priority, i.deadline,
           i.expires, i.retries, i.retries, CASE WHEN i.blockers = 0 THEN 0 ELSE -1 END,
           i.blockers, i.requires, i.definition, i.frame
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[],
                $7::timestamptz[], $8::timestamptz[], $9::smallint[], $10::text[], $11::integer[],
                $12::bytea[], $13::text[])
         WITH ORDINALITY AS i (task_id, task_queue_id, task_group_id, scheduler_id, project_id, priority,
                               deadline, expires, retries, requires, blockers, definition, frame, ord)
    CROSS JOIN LATERAL (
        SELECT scheduler_id, sealed FROM task_groups WHERE task_group_id = i.task_group_id OFFSET 0
    ) g
    WHERE g.scheduler_id = i.scheduler_id AND g.sealed IS NULL
    ORDER BY i.ord
    ON CONFLICT (task_id) DO NOTHING
    RETURNING task_id, task_queue_id, priority, deadline, last_run
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled',
           date_trunc('milliseconds', now())
    FROM created WHERE last_run = 0
)
SELECT task_id, date_trunc('milliseconds', now()) FROM created

-- name: enter_groups
-- Counts new tasks into their groups, and makes the groups that do not exist yet, as ensure_groups and
-- count_into_groups do together. $1 group ids, each once, $2 scheduler ids, $3 numbers of new tasks,
-- $4 latest expiries among them. Two that make one group at a time: the second fails, and goes the long way.
WITH counted AS (
    UPDATE task_groups g
    SET (active, expires) = (
            SELECT g.active + ($3::integer[])[x.n],
                   CASE WHEN g.expires < ($4::timestamptz[])[x.n]
                        THEN least(($4::timestamptz[])[x.n] + interval '1 hour', timestamptz '9999-12-31 23:59:59.999+00')
                        ELSE g.expires END
            FROM (SELECT array_position($1::text[], g.task_group_id) AS n OFFSET 0) x
        )
    WHERE g.task_group_id = ANY ($1::text[])
    RETURNING g.task_group_id
)
INSERT INTO task_groups (task_group_id, scheduler_id, expires, active)
SELECT i.task_group_id, i.scheduler_id, least(i.expires + interval '1 hour', timestamptz '9999-12-31 23:59:59.999+00'),
       i.n + (SELECT count(*) FROM tasks t
              WHERE t.task_group_id = i.task_group_id
                AND NOT EXISTS (SELECT FROM runs r WHERE r.task_id = t.task_id AND r.first_resolution OFFSET 0))
FROM unnest($1::text[], $2::text[], $3::integer[], $4::timestamptz[]) AS i (task_group_id, scheduler_id, n, expires)
WHERE i.task_group_id NOT IN (SELECT task_group_id FROM counted)

-- name: insert_all_tasks
-- As insert_tasks, or fails: by the key if an id is taken, by a division by zero if a group does not admit
-- its task (a constraint would log the row). Follows enter_groups, which holds the groups. Returns now.
WITH created AS (
    INSERT INTO tasks (task_id, task_queue_id, task_group_id, scheduler_id, project_id, priority, deadline,
                       expires, retries, retries_left, last_run, blockers, requires, definition, frame)
    SELECT CASE WHEN g.scheduler_id = i.scheduler_id AND g.sealed IS NULL THEN i.task_id
                ELSE (1 / (i.ord - i.ord))::text END,
           i.task_queue_id, i.task_group_id, i.scheduler_id, i.project_id, i.priority, i.deadline,
           i.expires, i.retries, i.retries, CASE WHEN i.blockers = 0 THEN 0 ELSE -1 END,
           i.blockers, i.requires, i.definition, i.frame
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[],
                $7::timestamptz[], $8::timestamptz[], $9::smallint[], $10::text[], $11::integer[],
                $12::bytea[], $13::text[])
         WITH ORDINALITY AS i (task_id, task_queue_id, task_group_id, scheduler_id, project_id, priority,
                               deadline, expires, retries, requires, blockers, definition, frame, ord)
    LEFT JOIN LATERAL (
        SELECT scheduler_id, sealed FROM task_groups WHERE task_group_id = i.task_group_id OFFSET 0
    ) g ON true
    ORDER BY i.ord
    RETURNING task_id, task_queue_id, priority, deadline, last_run
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled',
           date_trunc('milliseconds', now())
    FROM created WHERE last_run = 0
)
SELECT date_trunc('milliseconds', now())

-- name: judge_tasks
-- What stands against tasks that were not inserted. $1 ids, $2 group ids, $3 scheduler ids.
-- Returns for each: ordinal, group has that scheduler, group is sealed, definition and current
-- priority stored under the id (null: none).
SELECT i.ord, g.scheduler_id = i.scheduler_id, g.sealed IS NOT NULL, t.definition, t.priority
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS i (task_id, task_group_id, scheduler_id, ord)
LEFT JOIN LATERAL (
    SELECT scheduler_id, sealed FROM task_groups WHERE task_group_id = i.task_group_id OFFSET 0
) g ON true
LEFT JOIN LATERAL (SELECT definition, priority FROM tasks WHERE task_id = i.task_id OFFSET 0) t ON true

-- name: insert_edges
-- Records who waits for whom. $1 required, $2 dependent, $3 requires, $4 satisfied, $5 expires.
INSERT INTO task_dependencies (required_task_id, dependent_task_id, requires, satisfied, expires)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::timestamptz[])
ON CONFLICT DO NOTHING

-- name: count_into_groups
-- Adds new tasks to their groups' counters and lets the groups live an hour longer than their
-- tasks. $1 group ids, $2 numbers of new tasks, $3 latest expiries among them.
UPDATE task_groups g
SET (active, expires) = (
        SELECT g.active + ($2::integer[])[x.n],
               CASE WHEN g.expires < ($3::timestamptz[])[x.n]
                    THEN least(($3::timestamptz[])[x.n] + interval '1 hour', timestamptz '9999-12-31 23:59:59.999+00')
                    ELSE g.expires END
        FROM (SELECT array_position($1::text[], g.task_group_id) AS n OFFSET 0) x
    )
WHERE g.task_group_id = ANY ($1::text[])
