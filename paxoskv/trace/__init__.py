"""What is recorded of a run: one format for the simulator and for live nodes.

A Recorder watches one node at the boundary of its core: the messages and requests that go in, what its turns
want done, and its disk. It writes events into a Trace, a ring in memory. No part of the protocol knows of
it. docs/trace.md has the format, paxoskv/page/ draws it.

May import: kvstore, multipaxos, protocol, wire.
"""
