"""The protocol under random schedules, and what judges such runs: the checker of histories, the mutants."""
