-- name: count_queues
-- What is in every queue that has anything: queue, pending runs before their deadline, running runs whose
-- claim has not run out, workers, quarantined workers. Pending runs are counted along the claimers' index,
-- without their rows, and those past their deadline, which are few, taken off.
WITH pending AS (
    SELECT task_queue_id, count(*) AS n FROM runs WHERE state = 'pending' GROUP BY 1
), overdue AS (
    SELECT task_queue_id, count(*) AS n FROM runs
    WHERE state IN ('pending', 'running') AND deadline <= now() AND state = 'pending' GROUP BY 1
), claimed AS (
    SELECT task_queue_id, count(*) FILTER (WHERE taken_until > now()) AS n FROM runs
    WHERE state = 'running' GROUP BY 1
), staff AS (
    SELECT task_queue_id, count(*) AS n, count(*) FILTER (WHERE quarantine_until > now()) AS quarantined
    FROM workers WHERE expires > now() GROUP BY 1
)
SELECT q.task_queue_id, coalesce(p.n, 0) - coalesce(o.n, 0), coalesce(c.n, 0), coalesce(s.n, 0),
       coalesce(s.quarantined, 0)
FROM (
    SELECT task_queue_id FROM task_queues WHERE expires > now()
    UNION SELECT task_queue_id FROM pending
    UNION SELECT task_queue_id FROM claimed
    UNION SELECT task_queue_id FROM staff
) q
LEFT JOIN pending p USING (task_queue_id)
LEFT JOIN overdue o USING (task_queue_id)
LEFT JOIN claimed c USING (task_queue_id)
LEFT JOIN staff s USING (task_queue_id)

-- name: count_pending
-- Pending runs of a queue before their deadline, counted up to $2 (null: to the end). $1 queue.
SELECT count(*) FROM (
    SELECT FROM runs WHERE task_queue_id = $1::text AND state = 'pending' AND deadline > now()
    LIMIT $2::bigint
) counted

-- name: count_claimed
-- Running runs of a queue whose claim has not run out, counted up to $2 (null: to the end). $1 queue.
SELECT count(*) FROM (
    SELECT FROM runs WHERE task_queue_id = $1::text AND state = 'running' AND taken_until > now()
    LIMIT $2::bigint
) counted
