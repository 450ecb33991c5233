"""What is durable: the journal, the data directory, checkpoints.

May import: state, protocol, multipaxos, wire.
"""
