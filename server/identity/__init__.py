"""Who is calling: clients and roles in Postgres, bearer tokens, temporary credentials.

Both front doors end here in one `Identity`. Knows the store below it and nothing above; what a
caller may then do is decided from `Identity.scopes` by the pipeline and the handlers.
"""
