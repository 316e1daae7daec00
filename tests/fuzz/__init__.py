"""Requests nobody would think of. `make fuzz` runs thousands of them, `make test` a few hundred."""
