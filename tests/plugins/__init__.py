"""Pytest plugins, one per concern; listed in tests/conftest.py."""
