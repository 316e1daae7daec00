"""Background loops: one file each, each safe to run in many processes at once.

Each loop does one round at a time (`run_once`) and is driven by `base.run`; commands run a single
one, `serve` runs them all. May import transitions and store.
"""
