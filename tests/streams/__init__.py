"""ClaimWork over real sockets: one server in the loop or several, frozen and broken connections."""
