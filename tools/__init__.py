"""What the build runs: code generation and the checks of `make lint`. Nothing that ships imports this."""
