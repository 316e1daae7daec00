-- name: read_context
-- What new artifacts, and ends of uploads, are judged by; follows lock_tasks. $1 task ids, $2 run ids,
-- $3 names. Returns for each input: ordinal, now, the task's expiry (null: unknown) and project, the run's
-- state (null: unknown), when it was resolved, worker group and id, and the artifact of that name (nulls:
-- none): storage type, content type, content length, expires, present, doomed, bucket, url, target, reason,
-- message, upload.
SELECT i.ord, now(), t.expires, t.project_id, r.state, r.resolved, r.worker_group, r.worker_id,
       a.storage_type, a.content_type, a.content_length, a.expires, a.present, a.doomed, a.bucket, a.url,
       a.target, a.reason, a.message, a.upload_id
FROM unnest($1::text[], $2::smallint[], $3::text[]) WITH ORDINALITY AS i (task_id, run_id, name, ord)
LEFT JOIN LATERAL (
    SELECT expires, project_id FROM tasks WHERE task_id = i.task_id OFFSET 0
) t ON true
LEFT JOIN LATERAL (
    SELECT state, resolved, worker_group, worker_id FROM runs
    WHERE task_id = i.task_id AND run_id = i.run_id OFFSET 0
) r ON true
LEFT JOIN LATERAL (
    SELECT * FROM artifacts WHERE task_id = i.task_id AND run_id = i.run_id AND name = i.name OFFSET 0
) a ON true
ORDER BY i.ord

-- name: write_artifacts
-- Makes artifacts, or replaces what is known of them; content type and length keep their first values.
-- Follows lock_tasks. Arrays, each key once: $1 tasks, $2 runs, $3 names, $4 storage types, $5 content types,
-- $6 content lengths, $7 expires, $8 present, $9 buckets, $10 urls, $11 targets, $12 reasons, $13 messages,
-- $14 uploads.
INSERT INTO artifacts AS a (task_id, run_id, name, storage_type, content_type, content_length, expires,
                            present, bucket, url, target, reason, message, upload_id)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                     $7::timestamptz[], $8::boolean[], $9::text[], $10::text[], $11::text[], $12::text[],
                     $13::text[], $14::text[])
ON CONFLICT (task_id, run_id, name) DO UPDATE
SET storage_type = excluded.storage_type, expires = excluded.expires, present = excluded.present,
    bucket = excluded.bucket, url = excluded.url, target = excluded.target, reason = excluded.reason,
    message = excluded.message, upload_id = excluded.upload_id

-- name: follow_links
-- An artifact and all that links lead to from it, each once. $1 task, $2 run (null: the task's last),
-- $3 name. Returns now, the run looked at (null: no such task, or it has none), and for each artifact (nulls:
-- none): name, storage type, content type, content length, expires, present, bucket, url, target, reason,
-- message, upload.
WITH RECURSIVE wanted AS MATERIALIZED (
    SELECT coalesce(
        $2::smallint, (SELECT nullif(last_run, -1) FROM tasks WHERE task_id = $1::text)) AS run_id
), chain (name) AS (
    SELECT $3::text COLLATE "C"
    UNION
    SELECT a.target FROM chain c
    CROSS JOIN LATERAL (
        SELECT target FROM artifacts
        WHERE task_id = $1::text AND run_id = (SELECT run_id FROM wanted) AND name = c.name
          AND storage_type = 'link'
        OFFSET 0
    ) a
)
SELECT now(), w.run_id, a.name, a.storage_type, a.content_type, a.content_length, a.expires, a.present,
       a.bucket, a.url, a.target, a.reason, a.message, a.upload_id
FROM wanted w LEFT JOIN (
    chain c CROSS JOIN LATERAL (
        SELECT * FROM artifacts
        WHERE task_id = $1::text AND run_id = (SELECT run_id FROM wanted) AND name = c.name AND NOT doomed
        OFFSET 0
    ) a
) ON true

-- name: read_artifact
-- One artifact as lists show it. $1 task, $2 run (null: the task's last), $3 name. Returns storage type,
-- name, expires, content type, content length.
SELECT storage_type, name, expires, content_type, content_length FROM artifacts
WHERE task_id = $1::text AND name = $3::text AND present AND NOT doomed
  AND run_id = coalesce($2::smallint, (SELECT last_run FROM tasks WHERE task_id = $1::text))

-- name: list_artifacts
-- A run's artifacts by name. $1 task, $2 run (null: the task's last), $3 name to begin after, $4 how many.
-- Returns storage type, name, expires, content type, content length.
SELECT storage_type, name, expires, content_type, content_length FROM artifacts
WHERE task_id = $1::text AND name > $3::text AND NOT doomed
  AND run_id = coalesce($2::smallint, (SELECT last_run FROM tasks WHERE task_id = $1::text))
ORDER BY name LIMIT $4::integer

-- name: last_run
-- The index of a task's last run, -1 while it has none. $1 task.
SELECT last_run FROM tasks WHERE task_id = $1::text

-- name: has_blob
-- Whether an artifact of type s3 has its bytes, or is to have them, under this key; it stays so until the
-- transaction ends. $1 task, $2 run, $3 name, $4 bucket.
SELECT FROM artifacts
WHERE task_id = $1::text AND run_id = $2::smallint AND name = $3::text AND storage_type = 's3'
  AND bucket = $4::text AND NOT doomed
FOR SHARE

-- name: doom_artifacts
-- Chooses expired artifacts for deletion, those that expired first, and takes them out of sight. $1 delay
-- of the cut-off in seconds, $2 how many, and what to begin after: $3 expires, $4 task, $5 run, $6 name.
-- Returns expires, task, run, name, and the bucket of those that have bytes.
UPDATE artifacts a SET doomed = true
FROM (
    SELECT task_id, run_id, name FROM artifacts
    WHERE expires < now() + make_interval(secs => $1::double precision)
      AND (expires, task_id, run_id, name) > ($3::timestamptz, $4::text, $5::smallint, $6::text)
    ORDER BY expires, task_id, run_id, name LIMIT $2::integer FOR UPDATE SKIP LOCKED
) due
WHERE a.task_id = due.task_id AND a.run_id = due.run_id AND a.name = due.name
RETURNING a.expires, a.task_id, a.run_id, a.name, a.bucket

-- name: drop_artifacts
-- Deletes artifacts whose bytes are gone. $1 tasks, $2 runs, $3 names. Returns the number deleted.
WITH gone AS (
    DELETE FROM artifacts a
    USING unnest($1::text[], $2::smallint[], $3::text[]) AS i (task_id, run_id, name)
    WHERE a.task_id = i.task_id AND a.run_id = i.run_id AND a.name = i.name AND a.doomed
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: known_blobs
-- Which of these artifacts have bytes in a bucket. $1 tasks, $2 runs, $3 names, $4 bucket. Returns task, run,
-- name.
SELECT a.task_id, a.run_id, a.name
FROM unnest($1::text[], $2::smallint[], $3::text[]) AS i (task_id, run_id, name)
CROSS JOIN LATERAL (
    SELECT task_id, run_id, name FROM artifacts
    WHERE task_id = i.task_id AND run_id = i.run_id AND name = i.name AND bucket = $4::text OFFSET 0
) a
