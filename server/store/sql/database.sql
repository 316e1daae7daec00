-- What Database itself says to a new connection.

-- name: configure
-- Sets session parameters. deadlock_timeout is left alone where this role may not set it.
select set_config(wanted.name, wanted.value, false)
from unnest($1::text[], $2::text[]) as wanted(name, value)
where wanted.name <> 'deadlock_timeout' or has_parameter_privilege('deadlock_timeout', 'set');

-- name: probe
select 1;
