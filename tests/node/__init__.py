"""Nodes as processes: what they serve, survive and refuse."""
