-- What only the API of 2014 asks (queue.md 4).

-- name: read_claimed_run
-- A run as far as scopes need it. $1 task, $2 run. No row for an unknown task. Returns its queue, and the
-- run's state, worker group and id (nulls: there is no such run, or nobody claimed it).
SELECT t.task_queue_id, r.state, r.worker_group, r.worker_id
FROM tasks t
LEFT JOIN LATERAL (
    SELECT state, worker_group, worker_id FROM runs
    WHERE task_id = t.task_id AND run_id = $2::smallint OFFSET 0
) r ON true
WHERE t.task_id = $1::text

-- name: pending_tasks_between
-- Tasks with a pending run in a range of queues, by queue, then in the order in which they are handed out.
-- $1 first queue, $2 the first one after them, $3 how many.
SELECT task_id FROM runs
WHERE state = 'pending' AND task_queue_id >= $1::text AND task_queue_id < $2::text
ORDER BY task_queue_id, priority DESC, seq LIMIT $3::integer
