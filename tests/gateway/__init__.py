"""The HTTP door: its parts alone, and over real sockets."""
