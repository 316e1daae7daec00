-- name: enter_relay
-- Makes a relay's mark, behind everything the log holds now, unless there is one. $1 name.
INSERT INTO event_relay (name, next_id)
SELECT $1::text,
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')::regclass), 0) + 1
ON CONFLICT (name) DO NOTHING

-- name: try_lead
-- Takes the lead for as long as this transaction lasts; a leader that stops answering loses it by the
-- session's limit on idle transactions. $1 name. Returns whether.
SELECT pg_try_advisory_xact_lock(hashtextextended('tcqueue relay ' || $1::text, 0))

-- name: begin_epoch
-- A new leader begins. $1 name. Returns epoch, the mark, and the log's horizon.
UPDATE event_relay r SET epoch = r.epoch + 1 FROM event_log_horizon h
WHERE r.name = $1::text
RETURNING r.epoch, r.next_id, h.id

-- name: move_mark
-- Moves the mark forward, if the lead is still this leader's. $1 name, $2 epoch, $3 the mark. Returns a row if
-- so.
UPDATE event_relay SET next_id = greatest(next_id, $3::bigint)
WHERE name = $1::text AND epoch = $2::bigint
RETURNING next_id

-- name: set_aside
-- Keeps an event that the broker will not have. $1 id, $2 exchange, $3 key, $4 payload, $5 error.
INSERT INTO events_aside (event_id, exchange, key, payload, error)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::text)
ON CONFLICT (event_id) DO NOTHING

-- name: read_backlog
-- How far a relay is behind. $1 name. Returns rows at most, and the age in seconds of the first of them.
SELECT greatest(
           coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')::regclass), 0) + 1 - r.next_id,
           0),
       coalesce((
           SELECT extract(epoch FROM now() - o.time) FROM outbox o WHERE o.id >= r.next_id ORDER BY o.id LIMIT 1
       ), 0)::float8
FROM event_relay r WHERE r.name = $1::text

-- name: show_life
-- Says that the leader is there.
SELECT 1
