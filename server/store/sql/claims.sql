-- name: offer_runs
-- Puts pending runs of one queue on offer to streams, by priority, then age; they stay pending until
-- accepted. $1 queue, $2 stream ids (one for each free slot, in the order of serving), $3 process,
-- $4 seconds to accept, $5 claim timeout in seconds.
-- SKIP LOCKED lets any number of claimers walk the index side by side; a run that two of them see is
-- taken by the first and skipped by the other.
WITH picked AS MATERIALIZED (
    SELECT r.ctid AS row_id, r.task_id FROM runs r
    WHERE r.task_queue_id = $1::text AND r.state = 'pending' AND r.deadline > now()
      AND (r.offered_until IS NULL OR r.offered_until <= now())
    ORDER BY r.priority DESC, r.seq
    LIMIT cardinality($2::text[])
    FOR UPDATE SKIP LOCKED
), numbered AS (
    SELECT row_id, task_id, row_number() OVER () AS n FROM picked
)
UPDATE runs r
SET offered_until = now() + make_interval(secs => $4::double precision),
    stream_id = ($2::text[])[p.n], process_id = $3::text
FROM numbered p
CROSS JOIN LATERAL (
    SELECT definition, frame, priority, retries_left FROM tasks WHERE task_id = p.task_id OFFSET 0
) t
WHERE r.ctid = p.row_id
RETURNING p.n, r.task_id, r.run_id, r.stream_id, t.definition, t.frame, t.priority,
          t.retries_left, r.reason_created, r.scheduled, date_trunc('milliseconds', now()),
          date_trunc('milliseconds', now() + make_interval(secs => $5::double precision))

-- name: accept_runs
-- Makes offered runs running, for the streams they were offered to. $1 task ids, each once, $2 run
-- ids, $3 streams, $4 worker groups, $5 worker ids, $6 started, $7 taken until.
-- Returns the tasks of those accepted; the others were taken back, canceled or offered anew.
UPDATE runs r
SET (worker_group, worker_id, started, claimed, taken_until) = (
        SELECT ($4::text[])[x.n], ($5::text[])[x.n], ($6::timestamptz[])[x.n], ($6::timestamptz[])[x.n],
               ($7::timestamptz[])[x.n]
        FROM (SELECT array_position($1::text[], r.task_id) AS n OFFSET 0) x
    ),
    state = 'running', offered_until = NULL
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'pending'
  AND (
    SELECT r.run_id = ($2::smallint[])[x.n] AND r.stream_id = ($3::text[])[x.n]
    FROM (SELECT array_position($1::text[], r.task_id) AS n OFFSET 0) x
  )
RETURNING r.task_id

-- name: finish_runs
-- accept_runs and resolve_runs in one, for runs that are still on offer to a stream which accepts and resolves
-- them at once. $1 to $7 as accept_runs, ids in order; $8 states, $9 reasons. A run that is offered anew or
-- taken back meanwhile is another row by then, and stays as it is. Returns the tasks of those that stood, when
-- their runs were resolved, and their priority, which may have changed; the rest is known from the offers.
UPDATE runs r
SET state = i.state, reason_resolved = i.reason,
    first_resolution = CASE
        WHEN i.reason IN ('worker-shutdown', 'intermittent-task', 'claim-expired')
             AND (SELECT t.retries_left > 0 FROM tasks t WHERE t.task_id = r.task_id) THEN false
        WHEN r.run_id = 0 THEN true
        ELSE NOT EXISTS (
            SELECT FROM runs e WHERE e.task_id = r.task_id AND e.run_id < r.run_id AND e.first_resolution)
    END,
    worker_group = i.worker_group, worker_id = i.worker_id, started = i.started, claimed = i.started,
    taken_until = i.taken_until, resolved = date_trunc('milliseconds', now()), offered_until = NULL
FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[],
            $8::text[], $9::text[])
     AS i (task_id, run_id, stream_id, worker_group, worker_id, started, taken_until, state, reason)
CROSS JOIN LATERAL (
    SELECT ctid AS row_id FROM runs
    WHERE task_id = i.task_id AND run_id = i.run_id AND state || '' = 'pending' AND stream_id = i.stream_id
    OFFSET 0
) p
WHERE r.ctid = p.row_id
RETURNING r.task_id, r.resolved, r.priority

-- name: withdraw_offers
-- Takes back offers that will not be accepted; the runs are pending as if nothing had been.
-- $1 task ids, $2 streams. Returns the queues.
UPDATE runs r SET offered_until = NULL, stream_id = NULL, process_id = NULL
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'pending'
  AND r.stream_id = ($2::text[])[array_position($1::text[], r.task_id)]
RETURNING r.task_queue_id

-- name: claim_runs
-- Claims pending runs of one queue for unary callers, by priority, then age. $1 queue, $2 worker
-- groups and $3 worker ids (one for each run wanted, in the order of serving), $4 claim timeout.
WITH picked AS MATERIALIZED (
    SELECT r.ctid AS row_id, r.task_id FROM runs r
    WHERE r.task_queue_id = $1::text AND r.state = 'pending' AND r.deadline > now()
      AND (r.offered_until IS NULL OR r.offered_until <= now())
    ORDER BY r.priority DESC, r.seq
    LIMIT cardinality($2::text[])
    FOR UPDATE SKIP LOCKED
), numbered AS (
    SELECT row_id, task_id, row_number() OVER () AS n FROM picked
)
UPDATE runs r
SET state = 'running', worker_group = ($2::text[])[p.n], worker_id = ($3::text[])[p.n],
    started = date_trunc('milliseconds', now()), claimed = date_trunc('milliseconds', now()),
    taken_until = date_trunc('milliseconds', now() + make_interval(secs => $4::double precision)),
    offered_until = NULL, stream_id = NULL, process_id = NULL
FROM numbered p
CROSS JOIN LATERAL (
    SELECT definition, frame, priority, retries_left FROM tasks WHERE task_id = p.task_id OFFSET 0
) t
WHERE r.ctid = p.row_id
RETURNING p.n, r.task_id, r.run_id, t.definition, t.frame, t.priority,
          t.retries_left, r.reason_created, r.scheduled, r.started, r.taken_until

-- name: lock_task
-- Takes one task before its run is claimed by name. $1 task.
SELECT task_id FROM tasks WHERE task_id = $1::text FOR NO KEY UPDATE

-- name: claim_run_by_name
-- Claims one given run, or finds it claimed by the same worker the same way. $1 task, $2 run,
-- $3 worker group, $4 worker id, $5 claim timeout.
-- Returns until when, and whether the claim is new; no row if the run cannot be had.
WITH found AS MATERIALIZED (
    SELECT r.task_id, r.run_id, r.state = 'pending' AS is_new
    FROM runs r JOIN tasks t ON t.task_id = r.task_id AND t.last_run = r.run_id
    WHERE r.task_id = $1::text AND r.run_id = $2::smallint
      AND (r.state = 'pending'
           OR (r.state = 'running' AND r.by_name AND r.worker_group = $3::text AND r.worker_id = $4::text))
    FOR UPDATE OF r
)
UPDATE runs r
SET state = 'running', worker_group = $3::text, worker_id = $4::text, by_name = true,
    started = coalesce(r.started, date_trunc('milliseconds', now())),
    claimed = coalesce(r.claimed, date_trunc('milliseconds', now())),
    taken_until = coalesce(r.taken_until,
                           date_trunc('milliseconds', now() + make_interval(secs => $5::double precision))),
    offered_until = NULL, stream_id = NULL, process_id = NULL
FROM found f WHERE r.task_id = f.task_id AND r.run_id = f.run_id
RETURNING r.taken_until, f.is_new

-- name: reclaim_runs
-- Moves the end of running claims to now plus the timeout. $1 task ids in order, $2 run ids,
-- $3 stream: '' for a unary caller, who takes the run out of its stream's lease (no process renews
-- it any more; the stream is still told of its end); else only the runs which that stream renews.
-- $4 claim timeout.
-- Returns, for each renewed: ordinal, queue, worker, taken until, definition, now, whether a process
-- used to renew it, and for which stream. `judge_reclaims` tells why another was not.
WITH before AS MATERIALIZED (
    SELECT i.ord, i.task_id, i.stream_id, b.process_id, t.definition
    FROM unnest($1::text[], $2::smallint[], $3::text[]) WITH ORDINALITY AS i (task_id, run_id, stream_id, ord)
    CROSS JOIN LATERAL (
        SELECT definition FROM tasks
        WHERE task_id = i.task_id AND last_run = i.run_id AND deadline > now() OFFSET 0
    ) t
    CROSS JOIN LATERAL (
        SELECT process_id FROM runs WHERE task_id = i.task_id AND run_id = i.run_id OFFSET 0
    ) b
), renewed AS (
    UPDATE runs r
    SET taken_until = date_trunc('milliseconds', now() + make_interval(secs => $4::double precision)),
        claimed = date_trunc('milliseconds', now()),
        lease_until = NULL,
        process_id = CASE WHEN ($3::text[])[array_position($1::text[], r.task_id)] = '' THEN NULL
                          ELSE r.process_id END
    WHERE r.task_id = ANY (ARRAY(SELECT task_id FROM before)) AND r.state || '' = 'running'
      AND (
        SELECT r.run_id = ($2::smallint[])[x.n]
           AND (($3::text[])[x.n] = '' OR (r.stream_id = ($3::text[])[x.n] AND r.process_id IS NOT NULL))
        FROM (SELECT array_position($1::text[], r.task_id) AS n OFFSET 0) x
      )
    RETURNING r.task_id, r.task_queue_id, r.worker_group, r.worker_id, r.taken_until, r.stream_id
)
SELECT b.ord, n.task_queue_id, n.worker_group, n.worker_id, n.taken_until, b.definition,
       date_trunc('milliseconds', now()), b.process_id IS NOT NULL, n.stream_id
FROM renewed n JOIN before b ON b.task_id = n.task_id

-- name: judge_reclaims
-- Why runs could not be reclaimed. $1 task ids, $2 run ids. Returns, for each input whose task exists:
-- ordinal, deadline is past or now, last run, state and reason of the run asked for (null: none).
SELECT i.ord, t.deadline <= now(), t.last_run, r.state, r.reason_resolved
FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS i (task_id, run_id, ord)
CROSS JOIN LATERAL (SELECT last_run, deadline FROM tasks WHERE task_id = i.task_id OFFSET 0) t
LEFT JOIN LATERAL (
    SELECT state, reason_resolved FROM runs WHERE task_id = i.task_id AND run_id = i.run_id OFFSET 0
) r ON true

-- name: resume_runs
-- Gives running runs to a worker's new stream. $1 task ids in order, $2 run ids, $3 stream, $4 process,
-- $5 worker group, $6 worker id, $7 queue.
-- Returns for each input whose task exists: ordinal, resumed, run state, reason resolved.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS i (task_id, run_id, ord)
), before AS MATERIALIZED (
    SELECT i.ord, r.process_id, r.stream_id
    FROM input i JOIN runs r ON r.task_id = i.task_id AND r.run_id = i.run_id
), resumed AS (
    UPDATE runs r SET stream_id = $3::text, process_id = $4::text, lease_until = NULL
    FROM input i
    WHERE r.task_id = i.task_id AND r.run_id = i.run_id AND r.state = 'running'
      AND r.worker_group = $5::text AND r.worker_id = $6::text AND r.task_queue_id = $7::text
    RETURNING i.ord
)
SELECT i.ord, s.ord IS NOT NULL, r.state, r.reason_resolved, b.process_id, b.stream_id
FROM input i
LEFT JOIN runs r ON r.task_id = i.task_id AND r.run_id = i.run_id
LEFT JOIN before b ON b.ord = i.ord
LEFT JOIN resumed s ON s.ord = i.ord
ORDER BY i.ord

-- name: lease_runs
-- The streams of these running runs are gone: they are lost unless resumed in time. $1 task ids, $2
-- streams, $3 grace in seconds.
UPDATE runs r SET lease_until = now() + make_interval(secs => $3::double precision)
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'running'
  AND r.stream_id = ($2::text[])[array_position($1::text[], r.task_id)]
  AND r.process_id IS NOT NULL AND r.lease_until IS NULL

-- name: readopt_runs
-- This process was taken for dead and is not: its streams still hold these runs. $1 task ids, $2 streams.
UPDATE runs r SET lease_until = NULL
WHERE r.task_id = ANY ($1::text[]) AND r.state || '' = 'running'
  AND r.stream_id = ($2::text[])[array_position($1::text[], r.task_id)]
  AND r.process_id IS NOT NULL

-- name: lost_runs
-- Which of the runs that streams believe they hold they do not. $1 task ids, $2 run ids, $3 streams.
-- Returns, for each of those: ordinal, state and reason of the run (null: there is none).
SELECT i.ord, r.state, r.reason_resolved
FROM unnest($1::text[], $2::smallint[], $3::text[]) WITH ORDINALITY AS i (task_id, run_id, stream_id, ord)
LEFT JOIN LATERAL (
    SELECT state, reason_resolved, stream_id FROM runs
    WHERE task_id = i.task_id AND run_id = i.run_id OFFSET 0
) r ON true
WHERE r.state IS DISTINCT FROM 'running' OR r.stream_id IS DISTINCT FROM i.stream_id

-- name: renew_process
-- Says that this process is alive. $1 process, $2 seconds.
-- Returns the clock, how many others live, and whether the process was unknown (new, or buried).
WITH renewed AS (
    INSERT INTO processes (process_id, alive_until)
    VALUES ($1::text, now() + make_interval(secs => $2::double precision))
    ON CONFLICT (process_id) DO UPDATE SET alive_until = excluded.alive_until
    RETURNING xmax = 0 AS was_unknown
)
SELECT clock_timestamp(), (SELECT count(*) FROM processes WHERE process_id <> $1::text), was_unknown
FROM renewed

-- name: bury_processes
-- Gives the runs of processes that stopped renewing a lease of $1 seconds, and forgets the processes.
WITH dead AS (
    DELETE FROM processes WHERE alive_until <= now() RETURNING process_id
)
UPDATE runs SET lease_until = now() + make_interval(secs => $1::double precision)
WHERE state = 'running' AND lease_until IS NULL AND process_id IN (SELECT process_id FROM dead)

-- name: forget_process
-- A process ends politely; its streams are closed already. $1 process.
DELETE FROM processes WHERE process_id = $1::text

-- name: expired_claims
-- Runs whose claim or lease has run out, oldest first. $1 how many.
-- Past the deadline nothing is done here: the deadline loop will act.
(SELECT task_id, run_id FROM runs
 WHERE state = 'running' AND taken_until <= now() AND deadline > now() ORDER BY taken_until LIMIT $1::integer)
UNION
(SELECT task_id, run_id FROM runs
 WHERE state = 'running' AND lease_until IS NOT NULL AND lease_until <= now() AND deadline > now()
 ORDER BY lease_until LIMIT $1::integer)

-- name: append_recent_tasks
-- Appends runs to their workers' lists, which keep the latest 20. $1 queues, $2 worker groups,
-- $3 worker ids, $4 runs as `<taskId>/<runId>`; one element a run, in claim order.
UPDATE workers w
SET recent_tasks = (w.recent_tasks || n.runs)[greatest(cardinality(w.recent_tasks) + cardinality(n.runs) - 19, 1):]
FROM (
    SELECT i.task_queue_id, i.worker_group, i.worker_id, array_agg(i.run ORDER BY i.ord) AS runs
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
         WITH ORDINALITY AS i (task_queue_id, worker_group, worker_id, run, ord)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
) n
WHERE w.task_queue_id = n.task_queue_id AND w.worker_group = n.worker_group AND w.worker_id = n.worker_id

-- name: runs_of_worker
-- The running runs of a worker. $1 queue, $2 worker group, $3 worker id.
SELECT task_id, run_id FROM runs
WHERE task_queue_id = $1::text AND state = 'running' AND worker_group = $2::text AND worker_id = $3::text
ORDER BY task_id
