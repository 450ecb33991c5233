"""The rest of a node's protocol. Pure: no socket, no file, no clock.

May import: multipaxos, wire.
"""
