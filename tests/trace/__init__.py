"""The recorder, and what it writes."""
