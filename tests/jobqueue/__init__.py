"""The job queue of 2014 as its own clients use it: over sockets, with http.client, one connection."""
