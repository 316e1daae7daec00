-- name: read_group
-- A group. $1 group id.
SELECT task_group_id, scheduler_id, expires, sealed FROM task_groups WHERE task_group_id = $1::text

-- name: seal_group
-- Seals a group; the first time stays. $1 group id.
UPDATE task_groups SET sealed = coalesce(sealed, date_trunc('milliseconds', now()))
WHERE task_group_id = $1::text
RETURNING task_group_id, scheduler_id, expires, sealed

-- name: unresolved_members
-- A page of the group's unresolved tasks in id order. $1 group id, $2 after which id, $3 how many.
SELECT t.task_id FROM tasks t
WHERE t.task_group_id = $1::text AND t.task_id > $2::text
  AND (t.last_run < 0 OR EXISTS (
    SELECT FROM runs r
    WHERE r.task_id = t.task_id AND r.run_id = t.last_run AND r.state || '' IN ('pending', 'running') OFFSET 0))
ORDER BY t.task_id LIMIT $3::integer

-- name: count_members
-- How many tasks the group has. $1 group id.
SELECT count(*) FROM tasks WHERE task_group_id = $1::text
