-- Clients, roles, their audit trail. Every change notes itself in the trail in the same statement.

-- name: audit_of_client
-- What a client has done, oldest first, behind the given entry.
select seq, client_id, action, created, entity_id, entity_type from identity_audit
where client_id = $1::text and seq > $2::bigint order by seq limit $3::int

-- name: audit_of_entity
-- What was done to a client or role, oldest first, behind the given entry.
select seq, client_id, action, created, entity_id, entity_type from identity_audit
where entity_type = $1::text and entity_id = $2::text and seq > $3::bigint order by seq limit $4::int

-- name: bootstrap_lock
-- One process at a time prepares the identity tables; the lock goes with the transaction.
select pg_advisory_xact_lock(7218, 2)

-- name: client_delete
-- Deletes a client that is there; returns its id, or nothing.
with gone as (delete from clients where client_id = $1::text returning client_id),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select date_trunc('milliseconds', now()), 'client', client_id, 'deleted', $2::text from gone
)
select client_id from gone

-- name: client_get
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from clients where client_id = $1::text

-- name: client_get_sealed
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used, sealed_token
from clients where client_id = $1::text

-- name: client_insert
-- Makes a client unless its id is taken, and then returns nothing.
with made as (
    insert into clients (client_id, description, sealed_token, scopes, expires, delete_on_expiration, created,
        last_modified, last_rotated, last_date_used)
    select $1::text, $2::text, $3::bytea, $4::text[], date_trunc('milliseconds', $5::timestamptz), $6::bool,
        moment, moment, moment, moment
    from date_trunc('milliseconds', now()) as moment
    on conflict (client_id) do nothing
    returning *
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select created, 'client', client_id, 'created', $7::text from made
)
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from made

-- name: client_list
-- In order of their ids, those with a prefix (taken literally) and past the given id.
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from clients where starts_with(client_id, $1::text) and client_id > $2::text
order by client_id limit $3::int

-- name: client_lock
-- Holds a client until the transaction ends. Also its sealed token, and whether it was made within
-- the 15 minutes in which making it again is a repeat.
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used, sealed_token, created > now() - interval '15 minutes'
from clients where client_id = $1::text for update

-- name: client_reset
-- Gives a client another access token.
with changed as (
    update clients set sealed_token = $2::bytea, last_modified = moment, last_rotated = moment
    from date_trunc('milliseconds', now()) as moment
    where client_id = $1::text returning clients.*
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select last_modified, 'client', client_id, 'access token reset', $3::text from changed
)
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from changed

-- name: client_set_disabled
-- Disables or enables a client, harmlessly when it is so already.
with changed as (
    update clients set disabled = $2::bool, last_modified = date_trunc('milliseconds', now())
    where client_id = $1::text returning *
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select last_modified, 'client', client_id,
        case when disabled then 'client disabled' else 'client enabled' end, $3::text
    from changed
)
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from changed

-- name: client_touch
-- Notes that clients were used, at most once per the given number of seconds each.
update clients set last_date_used = date_trunc('milliseconds', now())
where client_id = any ($1::text[]) and last_date_used < now() - make_interval(secs => $2::float8)

-- name: client_update
with changed as (
    update clients set description = $2::text, scopes = $3::text[],
        expires = date_trunc('milliseconds', $4::timestamptz), delete_on_expiration = $5::bool,
        last_modified = date_trunc('milliseconds', now())
    where client_id = $1::text returning *
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select last_modified, 'client', client_id, 'updated', $6::text from changed
)
select client_id, description, scopes, expires, disabled, delete_on_expiration, created, last_modified,
    last_rotated, last_date_used
from changed

-- name: clients_delete_expired
-- Deletes expired clients that asked for it; returns their ids.
with doomed as (
    select client_id from clients where delete_on_expiration and expires < now()
    order by client_id limit $1::int for update skip locked
),
gone as (delete from clients using doomed where clients.client_id = doomed.client_id returning clients.client_id),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select date_trunc('milliseconds', now()), 'client', client_id, 'expired', $2::text from gone
)
select client_id from gone

-- name: directory_clients
-- What authentication needs of the named clients, or of all when the list is null.
select client_id, sealed_token, scopes, expires, disabled, last_date_used from clients
where $1::text[] is null or client_id = any ($1::text[])

-- name: directory_roles
select role_id, scopes from roles

-- name: first_start_get
select anonymous_filled is not null from identity_first_start

-- name: first_start_note
-- Remembers that the first start happened, and whether the anonymous role has ever been filled.
insert into identity_first_start (happened, anonymous_filled)
values (date_trunc('milliseconds', now()), case when $1::bool then date_trunc('milliseconds', now()) end)
on conflict (only_row) do update
set anonymous_filled = coalesce(identity_first_start.anonymous_filled, excluded.anonymous_filled)

-- name: role_delete
-- Deletes a role that is there; returns its id, or nothing.
with gone as (delete from roles where role_id = $1::text returning role_id),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select date_trunc('milliseconds', now()), 'role', role_id, 'deleted', $2::text from gone
)
select role_id from gone

-- name: role_get
select role_id, description, scopes, created, last_modified from roles where role_id = $1::text

-- name: role_insert
-- Makes a role unless its id is taken, and then returns nothing.
with made as (
    insert into roles (role_id, description, scopes, created, last_modified)
    select $1::text, $2::text, $3::text[], moment, moment from date_trunc('milliseconds', now()) as moment
    on conflict (role_id) do nothing
    returning *
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select created, 'role', role_id, 'created', $4::text from made
)
select role_id, description, scopes, created, last_modified from made

-- name: role_list
-- In order of their ids, past the given one.
select role_id, description, scopes, created, last_modified from roles
where role_id > $1::text order by role_id limit $2::int

-- name: role_update
with changed as (
    update roles set description = $2::text, scopes = $3::text[],
        last_modified = date_trunc('milliseconds', now())
    where role_id = $1::text returning *
),
noted as (
    insert into identity_audit (created, entity_type, entity_id, action, client_id)
    select last_modified, 'role', role_id, 'updated', $4::text from changed
)
select role_id, description, scopes, created, last_modified from changed

-- name: roles_lock
-- One change of roles at a time: what makes a cycle is only seen in all of them together.
select pg_advisory_xact_lock(7218, 3)
