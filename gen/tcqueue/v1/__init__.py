"""Messages, options and services of package tcqueue.v1; generated."""
