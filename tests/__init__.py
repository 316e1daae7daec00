"""The tests: `unit` needs nothing, `integration` real services; fixtures live in `plugins` by concern."""
