"""The tcqueue service: one call's way from a front door to Postgres and back.

Imports go one way (checked by import-linter): domain, errors, config <- store <- identity <-
handlers, dispatch, events, loops <- pipeline <- rpc <- app <- cli.
"""
