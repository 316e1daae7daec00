"""The queue's contract, case by case; each test's docstring names the items of queue.md section 10 (Q-n)
and the traps (T-n) that it ticks. `test_checklist` fails while one is missing.

A test speaks to the server through a `Door`, so that the same cases can be run through every front
door. `building` makes definitions, `shown` reads answers, `recording` reads events; the fixture `queue`
(tests/plugins/server.py) puts a server on a database of the test's own behind them.
"""
