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
SELECT task_id FROM tasks
WHERE task_group_id = $1::text AND task_id > $2::text AND NOT resolved
ORDER BY task_id LIMIT $3::integer

-- name: count_members
-- How many tasks the group has. $1 group id.
SELECT count(*) FROM tasks WHERE task_group_id = $1::text
