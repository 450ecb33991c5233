"""A running node: sockets, clock, signals, threads, and the loop that drives the protocol.

May import: everything except client.
"""
