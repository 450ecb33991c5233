"""The client library and its command line.

operations decides what to try and what to repeat; sync and aio carry that out over sockets. cli is the
command line: workload runs files of operations, report makes tables of a run, health looks at the nodes.

May import: config, page, wire.
"""
