-- name: count_queues
-- What is in every queue that has anything: queue, pending runs before their deadline, running runs whose
-- claim has not run out, workers, quarantined workers. Pending runs are counted along the claimers' index,
-- without their rows, and those past their deadline, which are few, taken off.
SELECT task_queue_id, sum(pending)::bigint, sum(claimed)::bigint, sum(workers)::bigint, sum(quarantined)::bigint
FROM (
    SELECT task_queue_id, count(*) AS pending, 0 AS claimed, 0 AS workers, 0 AS quarantined
    FROM runs WHERE state = 'pending' GROUP BY 1
    UNION ALL
    SELECT task_queue_id, -count(*) FILTER (WHERE state = 'pending'), 0, 0, 0
    FROM runs WHERE state IN ('pending', 'running') AND deadline <= now() GROUP BY 1
    UNION ALL
    SELECT task_queue_id, 0, count(*) FILTER (WHERE taken_until > now()), 0, 0
    FROM runs WHERE state = 'running' GROUP BY 1
    UNION ALL
    SELECT task_queue_id, 0, 0, count(*), count(*) FILTER (WHERE quarantine_until > now())
    FROM workers WHERE expires > now() GROUP BY 1
    UNION ALL
    SELECT task_queue_id, 0, 0, 0, 0 FROM task_queues WHERE expires > now()
) found
GROUP BY task_queue_id

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
