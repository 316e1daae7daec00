"""The schema: numbered plain-SQL steps, run by `server.store.migrator`; rules in README.md."""
