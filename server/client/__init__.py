"""The Python client: channels, credentials, readable errors, JSON, and the worker's side of ClaimWork.

The commands, the demo and the tests speak to the server through here. It knows the protos and
nothing of the server behind them; of `server` it may import only `identity.tokens` and `domain.slugid`.
"""

from __future__ import annotations
