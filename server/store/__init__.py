"""Everything that talks to PostgreSQL: connections, transactions, batches, notifications, migrations.

`store/sql/*.sql` holds the named statements, one file per noun. This package knows nothing of
requests, tasks or protobuf; handlers, identity, dispatch, events and loops build on it. It may
import `server.errors` and `server.domain`, nothing else of ours.
"""
