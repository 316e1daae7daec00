"""What each rpc does: one async function an rpc, named as the rpc in snake_case, in a module by noun.

A handler gets a Call and a validated request and returns the response, or raises a QueueError. It
knows no front door and keeps nothing between calls: it reaches everything through `call.services`.
The pipeline has authorised the caller where the scopes need only the request's path; all others
call `call.authorize` at the point that queue.md 3 names. `registry` finds the handlers; only it and
the pipeline import from here.
"""
