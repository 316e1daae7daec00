"""The Auth service, through both doors (auth.md 7 and its checklist)."""
