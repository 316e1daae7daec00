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
