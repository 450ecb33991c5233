"""The replicated state."""
