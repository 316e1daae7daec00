-- What of the event log has been deleted, and which log it is.

CREATE TABLE event_log_horizon (
    singleton boolean PRIMARY KEY DEFAULT true,
    -- Everything up to this outbox row has been deleted; everything after it is complete.
    id        bigint NOT NULL,
    -- Cursors carry a checksum over it, so that one from another database is refused.
    log_id    uuid NOT NULL DEFAULT gen_random_uuid(),
    CONSTRAINT event_log_horizon_singleton CHECK (singleton)
);
INSERT INTO event_log_horizon (id) VALUES (0);
