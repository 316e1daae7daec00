-- The queue's own tables (design: the runs table is the queue).
--
-- Ids are slugids kept as text in C collation: they come and go as text, and a person at a psql
-- prompt can paste them. Instants are cut to milliseconds, as every door shows them.

-- Order of pending runs among equals, and of rows written by one statement.
CREATE SEQUENCE run_seq;

CREATE TABLE tasks (
    task_id        text COLLATE "C" PRIMARY KEY,
    task_queue_id  text COLLATE "C" NOT NULL,
    task_group_id  text COLLATE "C" NOT NULL,
    scheduler_id   text NOT NULL,
    project_id     text NOT NULL,
    -- Claim rank, 7 highest to 1 lowest; the only part of the definition that can change.
    priority       smallint NOT NULL,
    deadline       timestamptz NOT NULL,
    expires        timestamptz NOT NULL,
    retries        smallint NOT NULL,
    retries_left   smallint NOT NULL,
    -- Index of the last run; -1 while the task is unscheduled.
    last_run       smallint NOT NULL,
    -- The last run is resolved.
    resolved       boolean NOT NULL,
    -- Some run has resolved the task; never reset.
    ever_resolved  boolean NOT NULL,
    -- Dependencies that still have to resolve suitably.
    blockers       integer NOT NULL,
    -- 'all-completed' or 'all-resolved'; copied onto the edges.
    requires       text NOT NULL,
    -- The whole definition: a serialized tcqueue.v1.TaskDefinition, priority as created.
    definition     bytea NOT NULL,
    -- What events need of the definition, in four lines so that an event costs concatenations and not
    -- a rendering of the definition: tail of the routing key; JSON list of further routing keys;
    -- JSON of the tags; JSON of the status fields that never change, open at its end.
    frame          text NOT NULL,
    CONSTRAINT tasks_priority CHECK (priority BETWEEN 1 AND 7),
    CONSTRAINT tasks_requires CHECK (requires IN ('all-completed', 'all-resolved'))
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.1,
        toast.autovacuum_vacuum_scale_factor = 0.1);

CREATE INDEX tasks_by_group ON tasks (task_group_id, task_id);
-- The deadline list.
CREATE INDEX tasks_by_deadline ON tasks (deadline, task_id) WHERE NOT resolved;
-- Expiry reads this daily; a B-tree would cost every create and every resolution.
CREATE INDEX tasks_by_expires ON tasks USING brin (expires) WITH (pages_per_range = 32);

CREATE TABLE runs (
    task_id         text COLLATE "C" NOT NULL,
    run_id          smallint NOT NULL,
    task_queue_id   text COLLATE "C" NOT NULL,
    state           text NOT NULL,
    priority        smallint NOT NULL,
    -- Age among the pending; ties of the claimed list.
    seq             bigint NOT NULL DEFAULT nextval('run_seq'),
    -- Copied from the task: a pending run is not handed out past it.
    deadline        timestamptz NOT NULL,
    reason_created  text NOT NULL,
    reason_resolved text,
    scheduled       timestamptz NOT NULL,
    started         timestamptz,
    resolved        timestamptz,
    worker_group    text,
    worker_id       text,
    taken_until     timestamptz,
    -- When it was last claimed or reclaimed.
    claimed         timestamptz,
    -- Claimed by name (claimTask), which the same worker may repeat.
    by_name         boolean NOT NULL DEFAULT false,
    -- The stream that was offered, or holds, the run; null for unary claims.
    stream_id       text,
    -- Process that serves that stream.
    process_id      text,
    -- A pending run is on offer to stream_id until then.
    offered_until   timestamptz,
    -- A running run's stream is gone; it is lost at this time unless resumed.
    lease_until     timestamptz,
    -- The first run to leave the task resolved, which is what its group counts.
    first_resolution boolean NOT NULL DEFAULT false,
    PRIMARY KEY (task_id, run_id),
    CONSTRAINT runs_state CHECK (state IN ('pending', 'running', 'completed', 'failed', 'exception'))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);

-- What claimers walk.
CREATE INDEX runs_pending ON runs (task_queue_id, priority DESC, seq) WHERE state = 'pending';
-- The claim expiry list.
CREATE INDEX runs_taken_until ON runs (taken_until) WHERE state = 'running';
-- Runs whose stream is gone.
CREATE INDEX runs_lease ON runs (lease_until) WHERE state = 'running' AND lease_until IS NOT NULL;
-- What listClaimedTasks and the counts read.
CREATE INDEX runs_claimed ON runs (task_queue_id, claimed, seq) WHERE state = 'running';

CREATE TABLE task_dependencies (
    required_task_id  text COLLATE "C" NOT NULL,
    dependent_task_id text COLLATE "C" NOT NULL,
    requires          text NOT NULL,
    satisfied         boolean NOT NULL,
    -- The dependent task's.
    expires           timestamptz NOT NULL,
    PRIMARY KEY (required_task_id, dependent_task_id)
);
CREATE INDEX task_dependencies_by_expires ON task_dependencies USING brin (expires) WITH (pages_per_range = 32);
CREATE INDEX task_dependencies_by_dependent ON task_dependencies (dependent_task_id);

-- Resolutions with more dependents than one transaction releases; a loop pages through them.
CREATE TABLE dependency_backlog (
    task_id    text COLLATE "C" PRIMARY KEY,
    resolution text NOT NULL
);

CREATE TABLE task_groups (
    task_group_id text COLLATE "C" PRIMARY KEY,
    scheduler_id  text NOT NULL,
    expires       timestamptz NOT NULL,
    sealed        timestamptz,
    -- Tasks of the group that have never been resolved; the group resolves at zero.
    active        integer NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX task_groups_by_expires ON task_groups USING brin (expires) WITH (pages_per_range = 32);

CREATE TABLE task_queues (
    task_queue_id    text COLLATE "C" PRIMARY KEY,
    description      text NOT NULL DEFAULT '',
    stability        text NOT NULL DEFAULT 'experimental',
    expires          timestamptz NOT NULL,
    last_date_active timestamptz NOT NULL,
    CONSTRAINT task_queues_stability CHECK (stability IN ('experimental', 'stable', 'deprecated'))
);

CREATE TABLE workers (
    task_queue_id      text COLLATE "C" NOT NULL,
    worker_group       text COLLATE "C" NOT NULL,
    worker_id          text COLLATE "C" NOT NULL,
    quarantine_until   timestamptz NOT NULL,
    -- JSON list of {clientId, updatedAt, quarantineUntil, quarantineInfo}.
    quarantine_details jsonb NOT NULL DEFAULT '[]',
    expires            timestamptz NOT NULL,
    first_claim        timestamptz NOT NULL,
    last_date_active   timestamptz NOT NULL,
    -- The latest 20 runs as `<taskId>/<runId>`, oldest first.
    recent_tasks       text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (task_queue_id, worker_group, worker_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- The event log: one row a transaction, holding all its events, so that an event costs its bytes and
-- not a row and two index entries. The id is drawn while the transaction holds its row locks, so the
-- order of ids is the order of causes; server/events/reader.py says how a reader waits for late ones.
CREATE TABLE outbox (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time   timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    -- JSON list of {exchange, key, cc, payload}.
    events text NOT NULL
);
CREATE INDEX outbox_by_time ON outbox USING brin (time) WITH (pages_per_range = 32);

-- Processes that serve streams; one that stops renewing has died, and its streams' runs get a lease.
CREATE TABLE processes (
    process_id  text COLLATE "C" PRIMARY KEY,
    alive_until timestamptz NOT NULL
);
