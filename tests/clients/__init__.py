"""Other people's clients, unpatched, against a real server over real sockets (compat.md 6 to 9)."""
