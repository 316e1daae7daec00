"""Objects: named, immutable data with an expiry (object.md), as artifacts of type `object` need them.

`service` keeps them here, `remote` asks another deployment, and the queue knows only what `keeper` says.
"""
