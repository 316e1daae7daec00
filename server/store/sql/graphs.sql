-- Task graphs. The rules atop transitions.sql hold here, too. Locks are taken in this order: tasks in id
-- order, then the task group, then the graph; a node's row changes only under its task's lock, except that
-- an extension, which holds the tasks that it requires, takes them off the leaves under the graph's lock.

-- name: lock_graphs
-- Takes graphs, in id order, so that the statements after it see them as they are. $1 graph ids.
-- Returns id, scheduler, state, scopes, routes, metadata, tags.
SELECT task_graph_id, scheduler_id, state, scopes, routes, metadata, tags
FROM task_graphs WHERE task_graph_id = ANY ($1::text[]) ORDER BY task_graph_id FOR NO KEY UPDATE

-- name: insert_graph
-- Makes a graph that does not exist yet. $1 id, $2 scheduler, $3 scopes, $4 routes, $5 metadata, $6 tags,
-- $7 expiry, null for a graph without tasks: a year from now. Returns a row if it was made.
INSERT INTO task_graphs (task_graph_id, scheduler_id, state, scopes, routes, metadata, tags, leaves_left, expires)
VALUES ($1::text, $2::text, 'running', $3::text, $4::text, $5::text, $6::text, 0,
        coalesce($7::timestamptz, now() + interval '1 year'))
ON CONFLICT (task_graph_id) DO NOTHING
RETURNING task_graph_id

-- name: insert_nodes
-- Adds those nodes whose ids are free, to be run when their tasks and the graph are held. $1 graph, then
-- arrays: $2 task ids, $3 names, $4 what they require, commas between, $5 reruns, $6 leaves.
-- Returns the ids of those it added.
INSERT INTO task_graph_nodes (task_graph_id, task_id, name, requires, reruns, reruns_left, leaf, done)
SELECT $1::text, i.task_id, i.name, string_to_array(i.requires, ','), i.reruns, i.reruns, i.leaf,
       EXISTS (
           SELECT FROM tasks t CROSS JOIN LATERAL (
               SELECT state FROM runs WHERE task_id = t.task_id AND run_id = t.last_run OFFSET 0
           ) r
           WHERE t.task_id = i.task_id AND r.state = 'completed' OFFSET 0
       )
FROM unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::boolean[])
     AS i (task_id, name, requires, reruns, leaf)
ORDER BY i.task_id
ON CONFLICT (task_id) DO NOTHING
RETURNING task_id

-- name: known_nodes
-- Those of the tasks that are nodes already. $1 task ids. Returns id, graph, requires, reruns, leaf.
SELECT task_id, task_graph_id, requires, reruns, leaf
FROM task_graph_nodes WHERE task_id = ANY ($1::text[]) ORDER BY task_id

-- name: graph_leaves
-- The tasks of a graph that none requires. $1 graph.
SELECT task_id FROM task_graph_nodes WHERE task_graph_id = $1::text AND leaf ORDER BY task_id

-- name: cover_leaves
-- These tasks are required now. To be run when they and the graph are held. $1 graph, $2 task ids.
UPDATE task_graph_nodes SET leaf = false
WHERE task_id = ANY ($2::text[]) AND task_graph_id = $1::text AND leaf

-- name: count_leaves
-- Counts anew what a graph waits for, to be run when it is held, and lets it live as long as its tasks.
-- $1 graph, $2 expiry of the latest new task, or null.
UPDATE task_graphs g
SET leaves_left = (
        SELECT count(*)::integer FROM task_graph_nodes n
        WHERE n.task_graph_id = $1::text AND n.leaf AND NOT n.done
    ),
    expires = greatest(g.expires, $2::timestamptz)
WHERE g.task_graph_id = $1::text

-- name: spend_reruns
-- Uses up a rerun of each task that has one left and can be run again. $1 ids of tasks that failed in this
-- transaction. Returns the ids of those.
UPDATE task_graph_nodes n SET reruns_left = n.reruns_left - 1
WHERE n.task_id = ANY ($1::text[]) AND n.reruns_left > 0
  AND EXISTS (
    SELECT FROM tasks t CROSS JOIN LATERAL (
        SELECT state FROM runs WHERE task_id = t.task_id AND run_id = t.last_run OFFSET 0
    ) r
    WHERE t.task_id = n.task_id AND r.state NOT IN ('pending', 'running') AND t.last_run < 49
      AND t.deadline >= now() OFFSET 0
  )
RETURNING n.task_id

-- name: settle_graphs
-- What tasks that this transaction resolved mean to their graphs, to be run after lock_graphs. $1 graphs,
-- $2 tasks that completed, $3 tasks that ended otherwise and are not run again.
-- Returns the graphs whose state it changed: id, scheduler, state now, routes, the first of $3 in it.
WITH completed AS (
    UPDATE task_graph_nodes SET done = true
    WHERE task_id = ANY ($2::text[]) AND NOT done
    RETURNING task_graph_id, leaf
), failed AS MATERIALIZED (
    SELECT task_graph_id, min(task_id) AS task_id
    FROM task_graph_nodes WHERE task_id = ANY ($3::text[]) GROUP BY task_graph_id
), counted AS MATERIALIZED (
    SELECT g.task_graph_id, g.state, g.leaves_left, f.task_id AS culprit, c.n
    FROM task_graphs g
    CROSS JOIN LATERAL (
        SELECT count(*)::integer AS n FROM completed WHERE task_graph_id = g.task_graph_id AND leaf OFFSET 0
    ) c
    CROSS JOIN LATERAL (
        SELECT min(task_id) AS task_id FROM failed WHERE task_graph_id = g.task_graph_id OFFSET 0
    ) f
    WHERE g.task_graph_id = ANY ($1::text[])
), judged AS MATERIALIZED (
    SELECT *, CASE WHEN n > 0 AND n = leaves_left THEN 'finished'
                   WHEN state = 'running' AND culprit IS NOT NULL THEN 'blocked'
                   ELSE state END AS state_now
    FROM counted
), written AS (
    UPDATE task_graphs g
    SET (state, leaves_left) = (
        SELECT j.state_now, j.leaves_left - j.n FROM judged j WHERE j.task_graph_id = g.task_graph_id
    )
    WHERE g.task_graph_id = ANY (ARRAY(SELECT task_graph_id FROM judged WHERE n > 0 OR state_now <> state))
    RETURNING g.task_graph_id, g.scheduler_id, g.state, g.routes
)
SELECT w.task_graph_id, w.scheduler_id, w.state, w.routes, j.culprit
FROM judged j CROSS JOIN LATERAL (
    SELECT * FROM written WHERE task_graph_id = j.task_graph_id OFFSET 0
) w
WHERE j.state_now <> j.state
ORDER BY 1

-- name: read_graph
-- A graph. $1 id. Returns as lock_graphs does.
SELECT task_graph_id, scheduler_id, state, scopes, routes, metadata, tags
FROM task_graphs WHERE task_graph_id = $1::text

-- name: read_nodes
-- The nodes of a graph and how far their tasks are. $1 graph. Returns id, name, requires, reruns, reruns
-- left, done, and the state of the task's last run: empty while there is none, null if the task is gone.
SELECT n.task_id, n.name, n.requires, n.reruns, n.reruns_left, n.done, s.state
FROM task_graph_nodes n
LEFT JOIN LATERAL (
    SELECT coalesce(r.state, '') AS state
    FROM tasks t LEFT JOIN runs r ON r.task_id = t.task_id AND r.run_id = t.last_run
    WHERE t.task_id = n.task_id OFFSET 0
) s ON true
WHERE n.task_graph_id = $1::text
ORDER BY n.task_id

-- name: read_node
-- The same for one node, those that it requires, and those that require it. $1 graph, $2 task.
SELECT n.task_id, n.name, n.requires, n.reruns, n.reruns_left, n.done, s.state
FROM task_graph_nodes n
LEFT JOIN LATERAL (
    SELECT coalesce(r.state, '') AS state
    FROM tasks t LEFT JOIN runs r ON r.task_id = t.task_id AND r.run_id = t.last_run
    WHERE t.task_id = n.task_id OFFSET 0
) s ON true
WHERE n.task_graph_id = $1::text
  AND (n.task_id = $2::text OR $2::text = ANY (n.requires)
       OR n.task_id = ANY (ARRAY(SELECT unnest(m.requires) FROM task_graph_nodes m WHERE m.task_id = $2::text)))
ORDER BY n.task_id
