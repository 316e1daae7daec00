"""Tests against real services, PostgreSQL above all."""
