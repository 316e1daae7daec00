"""The state machine: every change of a task's state, each one transaction over many tasks at once.

A transition locks its tasks in id order, changes them and their runs, lets dependents start and
groups close, and writes all its events, in one transaction; only after the commit does it wake
whoever waits. Front doors, streams and loops all come here; there is no second state machine.
May import domain, store and errors; handlers, dispatch and loops import it.
"""
