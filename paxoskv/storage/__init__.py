"""What is durable: the journal, the data directory, checkpoints, and recovery from them.

May import: multipaxos, protocol, state, wire.
"""
