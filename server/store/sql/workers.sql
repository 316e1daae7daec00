-- Statements that touch both tables write workers before queues, each in key order, so that they
-- never wait for each other in a circle.

-- name: see_workers
-- Notes that workers are there: makes or renews them and their queues for a day. $1 queues, $2 worker
-- groups, $3 worker ids, each worker once.
-- Returns queue, group, id, and until when it is quarantined, in seconds since the epoch.
WITH queues AS (
    INSERT INTO task_queues AS q (task_queue_id, expires, last_date_active)
    SELECT DISTINCT i.task_queue_id, date_trunc('milliseconds', now() + interval '1 day'),
           date_trunc('milliseconds', now())
    FROM unnest($1::text[]) AS i (task_queue_id) ORDER BY 1
    ON CONFLICT (task_queue_id) DO UPDATE
    SET expires = greatest(q.expires, excluded.expires), last_date_active = excluded.last_date_active
)
INSERT INTO workers AS w (task_queue_id, worker_group, worker_id, quarantine_until, expires, first_claim,
                          last_date_active)
SELECT i.task_queue_id, i.worker_group, i.worker_id, date_trunc('milliseconds', now() - interval '10 years'),
       date_trunc('milliseconds', now() + interval '1 day'), date_trunc('milliseconds', now()),
       date_trunc('milliseconds', now())
FROM unnest($1::text[], $2::text[], $3::text[]) AS i (task_queue_id, worker_group, worker_id)
ORDER BY 1, 2, 3
ON CONFLICT (task_queue_id, worker_group, worker_id) DO UPDATE
SET expires = greatest(w.expires, excluded.expires), last_date_active = excluded.last_date_active
RETURNING w.task_queue_id, w.worker_group, w.worker_id,
          extract(epoch FROM w.quarantine_until)::double precision

-- name: read_quarantines
-- Until when workers are quarantined, in seconds since the epoch. $1 queues, $2 worker groups, $3 ids.
SELECT w.task_queue_id, w.worker_group, w.worker_id, extract(epoch FROM w.quarantine_until)::double precision
FROM unnest($1::text[], $2::text[], $3::text[]) AS i (task_queue_id, worker_group, worker_id)
JOIN workers w ON w.task_queue_id = i.task_queue_id AND w.worker_group = i.worker_group
              AND w.worker_id = i.worker_id

-- name: declare_worker
-- Makes a worker or renews it. $1 queue, $2 group, $3 id, $4 expires (null: a day from now), which
-- never moves back. Its queue is for declare_task_queue, after this.
-- Returns whether it is visible, then the columns of get_worker.
INSERT INTO workers AS w (task_queue_id, worker_group, worker_id, quarantine_until, expires, first_claim,
                          last_date_active)
VALUES ($1::text, $2::text, $3::text, date_trunc('milliseconds', now() - interval '10 years'),
        date_trunc('milliseconds', coalesce($4::timestamptz, now() + interval '1 day')),
        date_trunc('milliseconds', now()), date_trunc('milliseconds', now()))
ON CONFLICT (task_queue_id, worker_group, worker_id) DO UPDATE
SET expires = greatest(w.expires, excluded.expires), last_date_active = excluded.last_date_active
RETURNING w.expires > now() OR w.quarantine_until > now(), w.task_queue_id, w.worker_group, w.worker_id,
          w.recent_tasks, w.expires, w.quarantine_until, w.first_claim, w.last_date_active

-- name: get_worker
-- A worker that is live or quarantined, of a live queue. $1 queue, $2 group, $3 id.
-- Returns queue, group, id, recent runs, expires, quarantined until, first seen, last seen.
SELECT w.task_queue_id, w.worker_group, w.worker_id, w.recent_tasks, w.expires, w.quarantine_until,
       w.first_claim, w.last_date_active
FROM workers w JOIN task_queues q ON q.task_queue_id = w.task_queue_id
WHERE w.task_queue_id = $1::text AND w.worker_group = $2::text AND w.worker_id = $3::text
  AND (w.expires > now() OR w.quarantine_until > now()) AND q.expires > now()

-- name: list_workers
-- Live and quarantined workers of a queue, by group and id. $1 queue, $2 group and $3 id to begin
-- after, $4 only those that are quarantined (true), are not (false), or all (null), $5 how many.
-- Returns group, id, first seen, last seen, latest run, quarantined until (null: is not).
SELECT worker_group, worker_id, first_claim, last_date_active, recent_tasks[cardinality(recent_tasks)],
       CASE WHEN quarantine_until > now() THEN quarantine_until END
FROM workers
WHERE task_queue_id = $1::text AND (worker_group, worker_id) > ($2::text, $3::text)
  AND (expires >= now() OR quarantine_until >= now())
  AND ($4::boolean IS NULL OR $4::boolean = (quarantine_until >= now()))
ORDER BY worker_group, worker_id LIMIT $5::integer

-- name: quarantine_worker
-- Withholds work from a worker until a time, keeps its row at least another day, and notes who did it
-- and why. $1 queue, $2 group, $3 id, $4 until, $5 client, $6 why.
-- Returns the columns of get_worker; no row if it is unknown.
UPDATE workers
SET quarantine_until = $4::timestamptz,
    expires = greatest(expires, date_trunc('milliseconds', now() + interval '1 day')),
    quarantine_details = quarantine_details || jsonb_build_object(
        'clientId', $5::text,
        'updatedAt', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'quarantineUntil', to_char($4::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'quarantineInfo', $6::text)
WHERE task_queue_id = $1::text AND worker_group = $2::text AND worker_id = $3::text
RETURNING task_queue_id, worker_group, worker_id, recent_tasks, expires, quarantine_until, first_claim,
          last_date_active
