"""Pure rules of the queue: ids, times, ranks, scopes, routing keys. No I/O and no protobuf; anything
may import this, and it imports only `server.errors`."""
