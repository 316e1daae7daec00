-- Clients, roles, and the trail of who changed them.

CREATE TABLE clients (
    client_id            text COLLATE "C" PRIMARY KEY,
    description          text NOT NULL,
    -- The access token, encrypted with a key that is not in the database.
    sealed_token         bytea NOT NULL,
    -- As given: neither sorted nor reduced.
    scopes               text[] NOT NULL,
    expires              timestamptz NOT NULL,
    disabled             boolean NOT NULL DEFAULT false,
    delete_on_expiration boolean NOT NULL DEFAULT false,
    created              timestamptz NOT NULL,
    last_modified        timestamptz NOT NULL,
    last_rotated         timestamptz NOT NULL,
    last_date_used       timestamptz NOT NULL
);

-- What the expiry round deletes.
CREATE INDEX clients_to_delete ON clients (expires) WHERE delete_on_expiration;

CREATE TABLE roles (
    role_id       text COLLATE "C" PRIMARY KEY,
    description   text NOT NULL,
    -- In canonical order, redundant ones kept.
    scopes        text[] NOT NULL,
    created       timestamptz NOT NULL,
    last_modified timestamptz NOT NULL
);

-- Outlives what it is about.
CREATE TABLE identity_audit (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created     timestamptz NOT NULL,
    entity_type text NOT NULL,
    entity_id   text COLLATE "C" NOT NULL,
    action      text NOT NULL,
    -- Who did it.
    client_id   text COLLATE "C" NOT NULL,
    CONSTRAINT identity_audit_entity_type CHECK (entity_type IN ('client', 'role'))
);
CREATE INDEX identity_audit_by_entity ON identity_audit (entity_type, entity_id, seq);
CREATE INDEX identity_audit_by_client ON identity_audit (client_id, seq);

-- At most one row: the first start has happened. What it made may since have been changed or
-- deleted by an operator, and is not made again.
CREATE TABLE identity_first_start (
    only_row         boolean PRIMARY KEY DEFAULT true,
    happened         timestamptz NOT NULL,
    -- When the anonymous role was filled; null while that has been switched off.
    anonymous_filled timestamptz,
    CONSTRAINT identity_first_start_only_row CHECK (only_row)
);
