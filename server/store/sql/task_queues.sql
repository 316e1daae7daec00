-- name: declare_task_queue
-- Makes a queue or updates it. $1 queue, $2 description and $3 stability (null: kept), $4 expires (null:
-- so many seconds from now as $5 says), which never moves back.
-- Returns whether it is live, id, description, stability, expires, last active.
INSERT INTO task_queues AS q (task_queue_id, description, stability, expires, last_date_active)
VALUES ($1::text, coalesce($2::text, ''), coalesce($3::text, 'experimental'),
        date_trunc('milliseconds', coalesce($4::timestamptz, now() + make_interval(secs => $5::double precision))),
        date_trunc('milliseconds', now()))
ON CONFLICT (task_queue_id) DO UPDATE
SET description = coalesce($2::text, q.description), stability = coalesce($3::text, q.stability),
    expires = greatest(q.expires, excluded.expires), last_date_active = excluded.last_date_active
RETURNING q.expires > now(), q.task_queue_id, q.description, q.stability, q.expires, q.last_date_active

-- name: get_task_queue
-- A live queue. $1 queue. Returns id, description, stability, expires, last active.
SELECT task_queue_id, description, stability, expires, last_date_active
FROM task_queues WHERE task_queue_id = $1::text AND expires > now()

-- name: list_task_queues
-- Live queues by id. $1 id to begin after, $2 how many.
SELECT task_queue_id, description, stability, expires, last_date_active
FROM task_queues WHERE task_queue_id > $1::text AND expires > now()
ORDER BY task_queue_id LIMIT $2::integer

-- name: list_worker_types
-- Live queues of one provisioner by id. $1 provisioner, $2 id to begin after, $3 how many.
-- In C order `0` comes right after `/`, so the range holds exactly the ids that begin with `$1/`.
SELECT task_queue_id, description, stability, expires, last_date_active
FROM task_queues
WHERE task_queue_id > $1::text || '/' AND task_queue_id < $1::text || '0' AND task_queue_id > $2::text
  AND expires > now()
ORDER BY task_queue_id LIMIT $3::integer

-- name: get_provisioner
-- What the live queues of a provisioner amount to; no row without one. $1 provisioner.
-- Returns id, expires, last active.
SELECT $1::text, max(expires), max(last_date_active)
FROM task_queues
WHERE task_queue_id > $1::text || '/' AND task_queue_id < $1::text || '0' AND expires > now()
HAVING count(*) > 0

-- name: list_provisioners
-- Provisioners by the ids of their queues. $1 provisioner to begin after, $2 how many.
SELECT split_part(task_queue_id, '/', 1), max(expires), max(last_date_active)
FROM task_queues
WHERE expires > now() AND ($1::text = '' OR task_queue_id >= $1::text || '0')
GROUP BY 1 ORDER BY min(task_queue_id) LIMIT $2::integer
