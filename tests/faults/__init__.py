"""What happens when parts are killed under load, and when callers send rubbish."""
