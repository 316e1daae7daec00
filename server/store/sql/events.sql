-- name: read_log_state
-- Returns the horizon (all rows up to it are deleted), the highest id ever drawn, and the log's id.
SELECT h.id, coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')::regclass), 0), h.log_id
FROM event_log_horizon h

-- name: read_new_rows
-- The rows from $1 on that this moment shows, in id order; $2 rows and about $3 bytes at most, but
-- always one. What is missing between them may still be committed: see server/events/reader.py.
-- Returns horizon, how many rows there were before the limit of bytes, id, time, events; one row with
-- nulls behind the horizon when there is nothing.
SELECT h.id, p.found, p.id, p.time, p.events
FROM event_log_horizon h
LEFT JOIN LATERAL (
    SELECT s.found, s.id, s.time, s.events
    FROM (
        SELECT o.id, o.time, o.events, count(*) OVER () AS found,
               sum(octet_length(o.events)) OVER (ORDER BY o.id) - octet_length(o.events) AS bytes_before
        FROM (
            SELECT id, time, events FROM outbox WHERE id >= $1::bigint ORDER BY id LIMIT $2::integer
        ) o
    ) s
    WHERE s.bytes_before < $3::bigint
) p ON true
ORDER BY p.id

-- name: read_kept_rows
-- The rows from $1 to $2 that hold text $3 (empty: all), in id order; $4 rows and about $5 bytes at
-- most, but always one. For a stretch of the log that is final.
-- Returns horizon, how many rows there were before the limit of bytes, id, time, events; one row with
-- nulls behind the horizon when there is nothing.
SELECT h.id, p.found, p.id, p.time, p.events
FROM event_log_horizon h
LEFT JOIN LATERAL (
    SELECT s.found, s.id, s.time, s.events
    FROM (
        SELECT o.id, o.time, o.events, count(*) OVER () AS found,
               sum(octet_length(o.events)) OVER (ORDER BY o.id) - octet_length(o.events) AS bytes_before
        FROM (
            SELECT id, time, events FROM outbox
            WHERE id BETWEEN $1::bigint AND $2::bigint AND strpos(events, $3::text) > 0
            ORDER BY id LIMIT $4::integer
        ) o
    ) s
    WHERE s.bytes_before < $5::bigint
) p ON true
ORDER BY p.id

-- name: read_open_writers
-- The transactions that may have drawn an id and not committed it yet: INSERT takes this lock on the
-- table before it computes anything, and it is held until after the commit can be seen.
SELECT l.virtualtransaction
FROM pg_locks l
WHERE l.locktype = 'relation' AND l.relation = 'outbox'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())

-- name: delete_old_rows
-- Deletes the oldest rows as far as they are older than $1 seconds, $2 at most, and none that relay $3
-- (empty: there is none) has still to bring to its broker, and moves the horizon with them. Several processes
-- may do this at once; only one does something. Returns how many.
WITH horizon AS MATERIALIZED (
    SELECT id FROM event_log_horizon FOR UPDATE SKIP LOCKED
), oldest AS MATERIALIZED (
    SELECT o.id, o.time < now() - make_interval(secs => $1::double precision) AS is_old
    FROM horizon h CROSS JOIN LATERAL (
        SELECT id, time FROM outbox
        WHERE id > h.id
          AND id < coalesce((SELECT next_id FROM event_relay WHERE name = $3::text), 9223372036854775807)
        ORDER BY id LIMIT $2::integer
    ) o
), deleted AS (
    DELETE FROM outbox
    WHERE id = ANY (ARRAY(
        SELECT id FROM oldest
        WHERE id < coalesce((SELECT min(id) FROM oldest WHERE NOT is_old), 9223372036854775807)))
    RETURNING id
), moved AS (
    UPDATE event_log_horizon SET id = (SELECT max(id) FROM deleted)
    WHERE EXISTS (SELECT FROM deleted)
)
SELECT count(*) FROM deleted

-- name: estimate_log_size
-- About how many bytes of events the log holds: its rows times the size of some of them.
SELECT ((s.drawn - h.id) * coalesce((
    SELECT avg(octet_length(o.events)) FROM (
        (SELECT events FROM outbox ORDER BY id LIMIT 100)
        UNION ALL
        (SELECT events FROM outbox ORDER BY id DESC LIMIT 100)
    ) o), 0))::bigint
FROM event_log_horizon h, LATERAL (
    SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')::regclass), 0) AS drawn
) s

-- name: read_statuses
-- Everything of tasks that their statuses show, at one moment. $1 task ids.
-- Returns a row for each run, or one with nulls for none: task id, queue, frame, priority, retries
-- left, ever resolved, and the run.
SELECT t.task_id, t.task_queue_id, t.frame, t.priority, t.retries_left,
       coalesce(bool_or(r.first_resolution) OVER (PARTITION BY t.task_id), false),
       r.run_id, r.state, r.reason_created, r.reason_resolved, r.worker_group, r.worker_id, r.taken_until,
       r.scheduled, r.started, r.resolved
FROM tasks t LEFT JOIN runs r ON r.task_id = t.task_id
WHERE t.task_id = ANY ($1::text[])
ORDER BY t.task_id, r.run_id

-- name: read_group_statuses
-- The same for the tasks of a group, in id order. $1 group, $2 after this task, $3 tasks at most.
SELECT t.task_id, t.task_queue_id, t.frame, t.priority, t.retries_left,
       coalesce(bool_or(r.first_resolution) OVER (PARTITION BY t.task_id), false),
       r.run_id, r.state, r.reason_created, r.reason_resolved, r.worker_group, r.worker_id, r.taken_until,
       r.scheduled, r.started, r.resolved
FROM (
    SELECT task_id, task_queue_id, frame, priority, retries_left FROM tasks
    WHERE task_group_id = $1::text AND task_id > $2::text
    ORDER BY task_id LIMIT $3::integer
) t LEFT JOIN runs r ON r.task_id = t.task_id
ORDER BY t.task_id, r.run_id

-- name: read_group_open
-- Whether a group has tasks that were never resolved; no row for an unknown group. $1 group.
SELECT active > 0 FROM task_groups WHERE task_group_id = $1::text
