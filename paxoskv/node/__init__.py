"""A running node: sockets, clock, signals, threads, and the loop that drives the protocol.

May import: config, kvstore, multipaxos, protocol, state, storage, wire.
"""
