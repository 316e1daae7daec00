"""Benchmarks: server, Postgres and drivers as processes of their own on one machine.

`python -m bench` runs them all and writes bench/latest.json; `--quick` takes two minutes. Figures are
medians of several rounds, printed with the machine's state; nothing here is a test.
"""
