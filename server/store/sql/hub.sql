-- What NotifyHub says. All processes of a deployment share one database and this one channel.

-- name: listen
listen tcqueue;

-- name: notify
-- One statement for any number of messages, each under PostgreSQL's 8000 bytes.
select count(pg_notify('tcqueue', message)) from unnest($1::text[]) as message;
