-- Artifacts, and the objects that some of them lie in. Bytes are elsewhere; a row says where.

CREATE TABLE artifacts (
    task_id        text COLLATE "C" NOT NULL,
    run_id         smallint NOT NULL,
    name           text COLLATE "C" NOT NULL,
    storage_type   text NOT NULL,
    content_type   text NOT NULL,
    content_length bigint,
    expires        timestamptz NOT NULL,
    -- What readers may see; an object artifact comes to be with its upload unfinished.
    present        boolean NOT NULL,
    -- Chosen for deletion: its bytes may be gone already, so nobody may build on it any more.
    doomed         boolean NOT NULL DEFAULT false,
    -- s3: the bucket; the key is <task>/<run>/<name>.
    bucket         text,
    -- reference: where the content is.
    url            text,
    -- link: name of the artifact of the same run that stands for this one.
    target         text COLLATE "C",
    -- error: why there is no content.
    reason         text,
    message        text,
    -- object: the upload under way; null once it is finished.
    upload_id      text,
    PRIMARY KEY (task_id, run_id, name),
    CONSTRAINT artifacts_storage_type
        CHECK (storage_type IN ('s3', 'object', 'reference', 'link', 'error', 'azure'))
) WITH (autovacuum_vacuum_scale_factor = 0.05);
-- The expiry list.
CREATE INDEX artifacts_by_expires ON artifacts (expires, task_id, run_id, name);

CREATE TABLE objects (
    name           text COLLATE "C" PRIMARY KEY,
    project_id     text NOT NULL,
    backend_id     text NOT NULL,
    expires        timestamptz NOT NULL,
    -- The upload under way, and when it is given up; both null once it is finished.
    upload_id      text COLLATE "C",
    upload_expires timestamptz,
    -- JSON object: hash algorithm to value.
    hashes         jsonb NOT NULL DEFAULT '{}',
    -- Key of its bytes in the private bucket. Made up, since names may hold what stores refuse.
    blob_key       text NOT NULL,
    doomed         boolean NOT NULL DEFAULT false,
    CONSTRAINT objects_upload CHECK ((upload_id IS NULL) = (upload_expires IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX objects_by_blob_key ON objects (blob_key);
CREATE INDEX objects_by_upload_id ON objects (upload_id) WHERE upload_id IS NOT NULL;
CREATE INDEX objects_by_expires ON objects (expires, name);
CREATE INDEX objects_by_upload_expires ON objects (upload_expires, name) WHERE upload_expires IS NOT NULL;
