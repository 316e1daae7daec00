-- name: create_object
-- Opens an upload unless the object is there; adds hashes to one that is open. $1 name, $2 project,
-- $3 backend, $4 expires, $5 upload, $6 JSON of hashes, $7 blob key, $8 lifetime of uploads in seconds.
-- Returns the object: now, project, backend, expires, upload, hashes before, blob key, doomed; nothing when
-- the upload's id is another object's.
WITH known AS MATERIALIZED (
    SELECT hashes FROM objects WHERE name = $1::text FOR UPDATE
), stored AS (
    INSERT INTO objects AS o (name, project_id, backend_id, expires, upload_id, upload_expires, hashes, blob_key)
    SELECT $1::text, $2::text, $3::text, $4::timestamptz, $5::text,
           date_trunc('milliseconds', now()) + make_interval(secs => $8::double precision), $6::jsonb, $7::text
    WHERE NOT EXISTS (SELECT FROM objects WHERE upload_id = $5::text AND name <> $1::text)
    ON CONFLICT (name) DO UPDATE
    SET hashes = CASE
        WHEN o.upload_id = $5::text AND o.project_id = $2::text AND o.backend_id = $3::text
             AND o.expires = $4::timestamptz AND NOT o.doomed AND $6::jsonb || o.hashes = o.hashes || $6::jsonb
        THEN o.hashes || $6::jsonb ELSE o.hashes END
    RETURNING o.project_id, o.backend_id, o.expires, o.upload_id, o.hashes, o.blob_key, o.doomed
)
SELECT now(), s.project_id, s.backend_id, s.expires, s.upload_id,
       coalesce((SELECT hashes FROM known), s.hashes)::text, s.blob_key, s.doomed
FROM stored s

-- name: finish_object
-- Ends an upload if project and upload fit and no hash is known with another value. $1 name, $2 project,
-- $3 upload, $4 JSON of hashes. Returns the object as it was before: project, upload (null: finished),
-- hashes; nothing for an unknown one.
WITH known AS MATERIALIZED (
    SELECT project_id, upload_id, hashes FROM objects WHERE name = $1::text AND NOT doomed FOR UPDATE
), finished AS (
    UPDATE objects o SET upload_id = NULL, upload_expires = NULL, hashes = o.hashes || $4::jsonb
    FROM known k
    WHERE o.name = $1::text AND k.project_id = $2::text AND k.upload_id = $3::text
      AND $4::jsonb || k.hashes = k.hashes || $4::jsonb
)
SELECT project_id, upload_id, hashes::text FROM known

-- name: read_object
-- A finished object. $1 name. Returns now, project, backend, expires, hashes, blob key.
SELECT now(), project_id, backend_id, expires, hashes::text, blob_key FROM objects
WHERE name = $1::text AND upload_id IS NULL AND NOT doomed

-- name: lock_upload
-- One opening at a time of the upload with this id, until the transaction ends; a statement that follows sees
-- whether another object has it. $1 upload.
SELECT pg_advisory_xact_lock(hashtextextended('tcqueue upload ' || $1::text, 0))

-- name: is_uploading
-- Whether a blob belongs to an object that is still open; it stays so until the transaction ends. $1 blob
-- key. The concatenation keeps the planner from the partial indexes of what is open.
SELECT FROM objects WHERE blob_key = $1::text AND upload_id || '' IS NOT NULL AND NOT doomed FOR SHARE

-- name: doom_objects
-- Chooses objects for deletion whose time is over, and takes them out of sight. $1 how many, and what to
-- begin after: $2 expires, $3 name. Returns expires, name, backend, blob key.
UPDATE objects o SET doomed = true
FROM (
    SELECT name FROM objects
    WHERE expires < now() AND (expires, name) > ($2::timestamptz, $3::text)
    ORDER BY expires, name LIMIT $1::integer FOR UPDATE SKIP LOCKED
) due
WHERE o.name = due.name
RETURNING o.expires, o.name, o.backend_id, o.blob_key

-- name: doom_uploads
-- The same for uploads that nobody finished. $1 how many, $2 end of the upload and $3 name to begin after.
-- Returns the end of the upload, name, backend, blob key.
UPDATE objects o SET doomed = true
FROM (
    SELECT name FROM objects
    WHERE upload_expires < now() AND (upload_expires, name) > ($2::timestamptz, $3::text)
    ORDER BY upload_expires, name LIMIT $1::integer FOR UPDATE SKIP LOCKED
) due
WHERE o.name = due.name
RETURNING o.upload_expires, o.name, o.backend_id, o.blob_key

-- name: drop_objects
-- Deletes objects whose bytes are gone. $1 names. Returns the number deleted.
WITH gone AS (
    DELETE FROM objects WHERE name = ANY ($1::text[]) AND doomed RETURNING 1
)
SELECT count(*) FROM gone

-- name: known_blobs
-- Which of these blobs belong to an object. $1 blob keys. Returns them.
SELECT blob_key FROM objects WHERE blob_key = ANY ($1::text[])
