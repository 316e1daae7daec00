-- What `tcqueue check` asks; nothing here changes anything.

-- name: database
-- Version, clock, size, connections in use and the most there may be.
select current_setting('server_version'),
       clock_timestamp(),
       pg_size_pretty(pg_database_size(current_database())),
       (select count(*) from pg_stat_activity where backend_type = 'client backend'),
       current_setting('max_connections')::int;

-- name: sealed_tokens
-- Some clients' sealed access tokens, the newest first: those that a lost key would have sealed.
select sealed_token from clients order by last_rotated desc limit 100;
