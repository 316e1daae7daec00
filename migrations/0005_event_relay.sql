-- The relay of events to a message broker: how far it is, and what it could not deliver.

CREATE TABLE event_relay (
    -- One relay for each broker; so far there is one, `amqp`.
    name    text PRIMARY KEY,
    -- Every row of the log below this has been confirmed by the broker, or set aside.
    next_id bigint NOT NULL,
    -- Goes up with every change of the lead, so that a leader of yesterday cannot move the mark.
    epoch   bigint NOT NULL DEFAULT 0
);

CREATE TABLE events_aside (
    event_id text PRIMARY KEY,
    exchange text NOT NULL,
    key      text NOT NULL,
    payload  text NOT NULL,
    -- Why the broker would not have it.
    error    text NOT NULL,
    time     timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now())
);
