"""The event log: what transitions wrote into the outbox, in one order, to as many as want to follow.

`log.EventLog` is what others use; `reader` knows which rows are final, `subscriptions` who gets what.
Writing events is the business of `server.transitions`; nothing here changes a task. May import
domain, store, errors and config; handlers and, later, the relay to a broker import it.
"""
