"""Artifact bytes: where they lie, and the URLs by which they come and go.

`store` says what a store is; `s3` and `disk` are stores, `opening` chooses one. Nothing here knows tasks,
runs or scopes: a blob is a key in a bucket, and who may touch it has been settled before.
"""
