"""The replicated state: what every node builds from the same entries in the same order.

May import: wire.
"""
