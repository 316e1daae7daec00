-- name: overdue_tasks
-- Unresolved tasks past their deadline by $1 seconds, longest overdue first. $2 how many.
SELECT task_id FROM (
    (SELECT task_id, deadline FROM runs
     WHERE state IN ('pending', 'running') AND deadline <= now() - make_interval(secs => $1::double precision)
     ORDER BY deadline, task_id LIMIT $2::integer)
    UNION ALL
    (SELECT task_id, deadline FROM tasks
     WHERE last_run < 0 AND deadline <= now() - make_interval(secs => $1::double precision)
     ORDER BY deadline, task_id LIMIT $2::integer)
) overdue
ORDER BY deadline, task_id LIMIT $2::integer

-- name: take_backlog
-- One resolution with dependents left over, held for this transaction.
SELECT task_id, resolution FROM dependency_backlog ORDER BY task_id LIMIT 1 FOR UPDATE SKIP LOCKED

-- name: open_edges
-- A page of the dependents that a resolution satisfies. $1 task, $2 resolution, $3 how many.
SELECT dependent_task_id FROM task_dependencies
WHERE required_task_id = $1::text AND NOT satisfied AND expires > now()
  AND ($2::text = 'completed' OR requires = 'all-resolved')
ORDER BY dependent_task_id LIMIT $3::integer

-- name: release_page
-- Settles these edges and starts the dependents for which it was the last. $1 task, $2 dependents.
-- Returns the started tasks as release_dependents does.
WITH satisfied AS (
    UPDATE task_dependencies SET satisfied = true
    WHERE required_task_id = $1::text AND dependent_task_id = ANY ($2::text[]) AND NOT satisfied
    RETURNING dependent_task_id
), held AS MATERIALIZED (
    SELECT t.*, t.blockers - 1 = 0 AND t.last_run < 0 AND t.deadline > now() AS starts
    FROM (SELECT dependent_task_id FROM satisfied ORDER BY 1) s
    CROSS JOIN LATERAL (
        SELECT task_id, task_queue_id, frame, priority, retries_left, blockers, last_run, deadline
        FROM tasks WHERE task_id = s.dependent_task_id FOR NO KEY UPDATE
    ) t
), freed AS (
    UPDATE tasks t
    SET blockers = t.blockers - 1,
        last_run = CASE WHEN t.task_id = ANY (ARRAY(SELECT task_id FROM held WHERE starts)) THEN 0
                        ELSE t.last_run END
    WHERE t.task_id = ANY (ARRAY(SELECT task_id FROM held))
), started AS (
    INSERT INTO runs (task_id, run_id, task_queue_id, state, priority, deadline, reason_created, scheduled)
    SELECT task_id, 0, task_queue_id, 'pending', priority, deadline, 'scheduled',
           date_trunc('milliseconds', now())
    FROM held WHERE starts ORDER BY task_id
)
SELECT task_id, task_queue_id, frame, priority, retries_left, date_trunc('milliseconds', now())
FROM held WHERE starts ORDER BY task_id

-- name: drop_backlog
-- Nothing is left over. $1 task.
DELETE FROM dependency_backlog WHERE task_id = $1::text

-- name: expire_tasks
-- Deletes tasks with their runs, and takes unresolved ones out of their groups' counters. $1 delay in
-- seconds, $2 how many. Returns the number deleted.
WITH due AS MATERIALIZED (
    SELECT task_id FROM tasks WHERE expires < now() + make_interval(secs => $1::double precision)
    ORDER BY task_id LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tasks t USING due d WHERE t.task_id = d.task_id RETURNING t.task_id, t.task_group_id
), runs_gone AS (
    DELETE FROM runs r USING due d WHERE r.task_id = d.task_id RETURNING r.task_id, r.first_resolution
), counted AS (
    UPDATE task_groups g SET active = g.active - c.n
    FROM (SELECT task_group_id, count(*)::integer AS n FROM gone
          WHERE task_id NOT IN (SELECT task_id FROM runs_gone WHERE first_resolution)
          GROUP BY 1 ORDER BY 1) c
    WHERE g.task_group_id = c.task_group_id
)
SELECT count(*) FROM gone

-- name: expire_jobs
-- $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS (
    SELECT task_id FROM jobs WHERE expires < now() + make_interval(secs => $1::double precision)
    LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobs j USING due d WHERE j.task_id = d.task_id RETURNING 1
)
SELECT count(*) FROM gone

-- name: expire_task_groups
-- $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS (
    SELECT task_group_id FROM task_groups WHERE expires < now() + make_interval(secs => $1::double precision)
    LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM task_groups g USING due d WHERE g.task_group_id = d.task_group_id RETURNING 1
)
SELECT count(*) FROM gone

-- name: expire_task_graphs
-- Deletes graphs with their nodes. $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS MATERIALIZED (
    SELECT task_graph_id FROM task_graphs WHERE expires < now() + make_interval(secs => $1::double precision)
    LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM task_graphs g USING due d WHERE g.task_graph_id = d.task_graph_id RETURNING 1
), nodes_gone AS (
    DELETE FROM task_graph_nodes n USING due d WHERE n.task_graph_id = d.task_graph_id
)
SELECT count(*) FROM gone

-- name: expire_task_dependencies
-- $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS (
    SELECT required_task_id, dependent_task_id FROM task_dependencies
    WHERE expires < now() + make_interval(secs => $1::double precision) LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM task_dependencies e USING due d
    WHERE e.required_task_id = d.required_task_id AND e.dependent_task_id = d.dependent_task_id RETURNING 1
)
SELECT count(*) FROM gone

-- name: expire_task_queues
-- $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS (
    SELECT task_queue_id FROM task_queues WHERE expires < now() + make_interval(secs => $1::double precision)
    LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM task_queues q USING due d WHERE q.task_queue_id = d.task_queue_id RETURNING 1
)
SELECT count(*) FROM gone

-- name: expire_workers
-- A quarantine outlives the worker's expiry. $1 delay in seconds, $2 how many. Returns the number deleted.
WITH due AS (
    SELECT task_queue_id, worker_group, worker_id FROM workers
    WHERE expires < now() + make_interval(secs => $1::double precision)
      AND quarantine_until < now() + make_interval(secs => $1::double precision)
    LIMIT $2::integer FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM workers w USING due d
    WHERE w.task_queue_id = d.task_queue_id AND w.worker_group = d.worker_group AND w.worker_id = d.worker_id
    RETURNING 1
)
SELECT count(*) FROM gone
