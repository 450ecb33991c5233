"""A running node. `main` puts its parts together, `server` is their loop and their life cycle.

`replica` joins a core, the store and the journal; the simulator runs it, too. `turns`, `writer`, `peers`,
`connections`, `inbox`, `service`, `checkpointing` and `health` are the parts around it, each with its own
state, none of which knows the server. `status`, `metrics` and `eventlog` say how things stand.

May import: config, kvstore, multipaxos, protocol, state, storage, trace, wire.
"""
