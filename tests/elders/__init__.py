"""The interfaces of 2014 as clients of that time use them: the queue's, auth's and the scheduler's `/v1`.

Each call of the user's reference is marked on the tests that are about it; docs/elders.md is made from that.
"""
