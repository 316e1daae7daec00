-- Task graphs. A graph's tasks are tasks of the queue, and how far they are stands there; here stands what
-- the queue does not know: what was submitted, reruns, and how much of the graph is still waited for.

CREATE TABLE task_graphs (
    task_graph_id text COLLATE "C" PRIMARY KEY,
    scheduler_id  text NOT NULL,
    state         text NOT NULL,
    -- As submitted, as JSON text with sorted keys: equal ones are spelled alike.
    scopes        text NOT NULL,
    routes        text NOT NULL,
    metadata      text NOT NULL,
    tags          text NOT NULL,
    -- Leaves that are not done; the graph finishes when this becomes zero.
    leaves_left   integer NOT NULL,
    -- The latest of its tasks'.
    expires       timestamptz NOT NULL,
    CONSTRAINT task_graphs_state CHECK (state IN ('running', 'blocked', 'finished'))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX task_graphs_by_expires ON task_graphs USING brin (expires) WITH (pages_per_range = 32);

CREATE TABLE task_graph_nodes (
    task_id       text COLLATE "C" PRIMARY KEY,
    task_graph_id text COLLATE "C" NOT NULL,
    -- The name in the task's metadata.
    name          text NOT NULL,
    requires      text[] NOT NULL,
    reruns        smallint NOT NULL,
    reruns_left   smallint NOT NULL,
    -- No task of the graph requires it.
    leaf          boolean NOT NULL,
    -- It has completed, be it once; never reset.
    done          boolean NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX task_graph_nodes_by_graph ON task_graph_nodes (task_graph_id, task_id);
