"""Guards on query plans: a statement that stops using its index fails here before it fails in the field."""
