"""The HTTP front door (design 2): one ASGI application in the server's process and on its event loop.

Today it serves metrics, heartbeats and the version; the REST routes are built on it.
"""
