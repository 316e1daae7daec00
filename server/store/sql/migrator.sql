-- The migrator's own table. It is made here and not by a migration, since it must be there before the first.

-- name: lock
-- Held until the connection closes: one process migrates, the others wait and then find nothing to do.
select pg_advisory_lock($1);

-- name: table_exists
select to_regclass('schema_migrations') is not null;

-- name: create_table
create table if not exists schema_migrations (
  version integer primary key,
  name text not null,
  checksum text not null,
  applied timestamptz not null default now()
);

-- name: read
select version, name, checksum, applied from schema_migrations order by version;

-- name: record
-- Runs in the transaction of the migration it records.
insert into schema_migrations (version, name, checksum) values ($1, $2, $3);
