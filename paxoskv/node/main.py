"""The command line of a node, and how its parts are put together.

server.py --id 1                    one of the nodes in cluster.json
server.py --standalone              the same service without Paxos
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from paxoskv import config as configuration
from paxoskv.node.addresses import Addresses
from paxoskv.node.calls import Answers
from paxoskv.node.checkpointing import Checkpointing
from paxoskv.node.connections import Connections, most_connections
from paxoskv.node.eventlog import EXIT_DISK, EXIT_USAGE, LEVELS, Usage, log
from paxoskv.node.formats import Formats
from paxoskv.node.health import Health
from paxoskv.node.identity import Trust, trust_of
from paxoskv.node.inbox import Inbox
from paxoskv.node.long_work import LongWork
from paxoskv.node.metrics import Counts
from paxoskv.node.opening import open_journal, recovered, repaired
from paxoskv.node.peers import Peers
from paxoskv.node.replica import Replica
from paxoskv.node.server import Server, unusable
from paxoskv.node.service import Service
from paxoskv.node.status import StatusReport
from paxoskv.node.switches import Switches
from paxoskv.node.tracing import Tracing
from paxoskv.node.turns import Turns
from paxoskv.node.watches import Watches
from paxoskv.node.writer import Writer, disk_failed
from paxoskv.protocol.core import Core
from paxoskv.protocol.faults import Failures
from paxoskv.protocol.node import Node
from paxoskv.protocol.single import Single
from paxoskv.state.store import Store
from paxoskv.storage.checkpoint import Checkpoints
from paxoskv.storage.checkpoint_process import CheckpointProcess
from paxoskv.storage.data_dir import condemn, discard_replacement, mark_format
from paxoskv.storage.files import Damaged, Files, Full, JournalError, Unreadable
from paxoskv.storage.journal import Journal
from paxoskv.wire.connection import Flusher, new_event_loop
from paxoskv.wire.structs import Identity

CHECKPOINT_MB: Final = 64.0  # of the standalone server's journal, between two checkpoints
M_MMAP_THRESHOLD: Final = -3  # <malloc.h>
LARGE_BLOCK: Final = 768 << 10  # bytes: more than any value has
# Those before --cpu takes effect: checkpoints may use them. Empty where the system decides alone (macOS).
PROCESSORS: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# Open files that a node needs: its own, a few clients', and both directions to each of the nodes.
FILES, FILES_PER_NODE = 40, 2
REPAIR: Final = (
    "; nothing was cut, and this node does not vote with it. If it has peers, they have what it held: move "
    "its data directory aside and start it with --rejoin"
)


def put_together(
    identity: Identity,
    core: Core,
    store: Store,
    journal: Journal,
    directory: Path,
    members: dict[int, configuration.Member],
    request_timeout_s: float,
    checkpoint_mb: float,
    trust: Trust,
    trace: bool = False,
    address: str | None = None,
    switches: Callable[[Peers], Switches] | None = None,
) -> Server:
    """A node's parts, after its recovery; each is given those that it needs. `members`: the peers.

    `address`: where the node listens, as it tells the peers.
    `switches`: what makes the switches of faults on purpose, where there are any.
    """
    loop = asyncio.get_running_loop()
    turns, flusher, counts = Turns(loop), Flusher(), Counts()
    writer, answer = Writer(journal, loop, counts.fsync), Answers(counts).answer
    formats = Formats(store, members, partial(keep_older_out, directory, identity), core.report)
    addresses = Addresses(store, address, members)
    peers = Peers(
        identity, core, members, flusher, counts, trust, loop, partial(condemn, directory), formats, addresses
    )
    files = Checkpoints(directory, journal, turns.later)
    nodes = sorted([identity.node, *members]) if identity.node else []
    maker = CheckpointProcess(files, nodes, PROCESSORS, journal.lock)
    # Nodes of one cluster have the same load: they must not all make a checkpoint at the same moment.
    count = len(members) + 1
    limit = int(checkpoint_mb * (1 + identity.node % count / (2 * count)) * (1 << 20))
    checkpointing = Checkpointing(core, writer, maker, turns, answer, counts.checkpoint, limit)
    wanted = checkpointing.wanted
    replica = Replica(core, store, time.monotonic, peers.send, checkpointing.write, answer, files, wanted)
    connections = Connections(counts, most_connections())
    health = Health(count, core, journal)
    long_work = LongWork(turns)
    watches = Watches(store, long_work, answer, loop.time)
    status = StatusReport(identity, replica, journal, peers, connections, checkpointing, health, watches,
                          counts, loop)  # fmt: skip
    tracing = Tracing(replica, directory)
    tracing.switch(trace, restarted=True)
    service = Service(replica, checkpointing, health, status, long_work, watches, tracing, formats, answer)
    inbox = Inbox(service, peers, replica, turns, counts)
    return Server(
        replica, turns, flusher, writer, inbox, checkpointing, health, status, request_timeout_s,
        switches(peers) if switches else None,
    )  # fmt: skip


def keep_older_out(directory: Path, identity: Identity, format_: int, files: Files | None = None) -> None:
    """Let no version start on our data that does not know the commands of this format.

    Nobody may hear that we have applied UPGRADE before that is durable, and what is being applied cannot
    wait. So without room on the disk the node ends as one whose disk fails; the next start tries again.
    """
    try:
        mark_format(directory, identity, format_, files)
    except OSError as error:
        path, reason = directory / "identity.json", error.strerror or error
        disk_failed(JournalError(f"{path}: cannot note that all nodes know newer commands: {reason}"))


def switched(settings: configuration.Cluster, node: int, core: Node) -> Callable[[Peers], Switches] | None:
    """What makes the switches of faults on purpose; None where the cluster's file names no faults."""
    return partial(Switches, settings.faults, node, core.faults) if settings.faults else None


def check_files(nodes: int) -> None:
    """Usage if this process may not have as many files open as a node needs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_PER_NODE * nodes
    if most != resource.RLIM_INFINITY and most < needed:
        raise Usage(f"open files: {most} are allowed, {needed} are needed, 65536 are better: ulimit -Hn")


def check_address(host: str, port: int, origin: str) -> None:
    """Usage if this process cannot listen there: before a data directory is made for it.

    If there is data, the lock on it is waited for, and so is the port of a process that is ending.
    """
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:  # bound only: nobody can connect to it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise unusable(origin, host, port, error) from error


async def serve_node(options: argparse.Namespace) -> None:
    """One node of the cluster."""
    settings = configuration.load(options.cluster)
    try:
        member = settings.member(options.id)
    except configuration.ClusterError as error:
        raise Usage(f"{options.cluster}: {error}") from error
    if options.rejoin and len(settings.nodes) == 1:
        raise Usage("--rejoin: a node alone cannot rejoin: nobody else knows what it has forgotten")
    check_files(len(settings.nodes))
    origin = f"{options.cluster}: nodes: host and port of node {options.id}"
    trust = trust_of(settings, options.id, options.cluster)
    if options.init or options.rejoin:
        for port in filter(None, (member.port, member.metrics_port)):
            check_address(member.host, port, origin)
    disk = int(not options.rejoin)
    identity = Identity(settings.name, settings.digest, options.id, disk, 0, proposing=settings.named_way)
    directory = configuration.data_directory(options.data, settings, options.cluster) / f"node-{options.id}"
    journal = open_journal(directory, identity, options.init or options.rejoin, settings.fsync)
    failing = settings.acceptor_failures

    def begin() -> tuple[Node, Store]:
        core = Node(
            options.id, [node.id for node in settings.nodes], Random(os.urandom(16)), settings.revoke_after_s,
            Failures(failing.probability, failing.silence_s, failing.every_s), journal.identity.incarnation,
            proposing=settings.proposing,
        )  # fmt: skip
        store = Store(str(directory / "store.json"))
        recovered(journal, directory, core, store)
        return core, store

    try:
        core, store = begin()
        with contextlib.suppress(OSError):  # it is of no use, and does no harm
            discard_replacement(directory)
    except Damaged as damage:
        if isinstance(damage, Unreadable) or len(settings.nodes) == 1 or not settings.self_repair:
            raise
        journal = repaired(journal, directory, damage, settings.fsync)
        core, store = begin()
    peers = {node.id: node for node in settings.nodes if node.id != options.id}
    server = put_together(
        journal.identity, core, store, journal, directory, peers,
        settings.request_timeout_s, settings.checkpoint_mb, trust, settings.trace,
        configuration.address_text(member.host, member.port), switched(settings, options.id, core),
    )  # fmt: skip
    await server.run(member.host, member.port, origin, member.metrics_port)


async def serve_standalone(options: argparse.Namespace) -> None:
    """The same service without replication."""
    try:
        host, port = configuration.split_address(options.listen)
    except ValueError as error:
        raise Usage(f"--listen: {error}") from error
    check_files(1)
    identity = Identity("standalone", "", 0, 1, 0)
    directory = Path(options.data or "data") / "standalone"
    journal = open_journal(directory, identity, options.init or not directory.exists(), True)
    core = Single()
    store = Store(str(directory / "store.json"))
    recovered(journal, directory, core, store)
    server = put_together(journal.identity, core, store, journal, directory, {}, 10.0, CHECKPOINT_MB,
                          Trust(identity.cluster, 0))  # fmt: skip
    await server.run(host, port, "--listen")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py", description="One node of the cluster, or the single server."
    )
    option = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", type=int, help="which node of the cluster to be")
    which.add_argument(
        "--standalone", action="store_true", help="the same service without Paxos, for comparison"
    )
    option("--cluster", default="cluster.json", metavar="FILE", help="the cluster (default: %(default)s)")
    option("--data", metavar="DIR", help="where data directories are (default: as cluster.json says)")
    option("--cpu", type=int, metavar="K",
           help="run on the K-th of the processors that this process may use, counted round and round: "
           "several nodes on one machine answer faster when each stays where it is")  # fmt: skip
    option("--init", action="store_true", help="make the data directory: once in a cluster's life")
    option("--rejoin", action="store_true",
           help="make the data directory anew, after the old one was lost: the node votes again when all "
           "other nodes have told it what it may have forgotten")  # fmt: skip
    option("--listen", default="127.0.0.1:7100", metavar="HOST:PORT",
           help="address with --standalone (default: %(default)s)")  # fmt: skip
    option("--log-format", choices=("text", "json"), default="text",
           help="lines of name=value, or of JSON objects (default: text)")  # fmt: skip
    option("--log-level", choices=LEVELS, default="info",
           help="the least important events that are logged (default: info)")  # fmt: skip
    return parser


def give_large_blocks_back() -> None:
    """Let memory of this size and more go back to the system when it is freed.

    glibc begins like that, but after the first such block it keeps ever larger ones. A store that grows
    leaves one behind whenever its table is replaced by one of twice the size.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def main() -> int:
    options = arguments().parse_args()
    give_large_blocks_back()
    log.node, log.as_json = options.id or 0, options.log_format == "json"
    log.lowest = LEVELS.index(options.log_level)
    if options.cpu is not None and PROCESSORS:
        os.sched_setaffinity(0, {PROCESSORS[options.cpu % len(PROCESSORS)]})
    serve = serve_standalone if options.standalone else serve_node
    gc.disable()  # until it serves: recovery makes very many objects, none of them garbage
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(options))
    except Damaged as damage:  # a name of its own: compiled, the other one would have this type as well
        print(f"server.py: {damage}{REPAIR}", file=sys.stderr)
        return EXIT_USAGE
    except (Usage, configuration.ClusterError, JournalError, OSError) as error:
        print(f"server.py: {error}", file=sys.stderr)
        return EXIT_DISK if isinstance(error, Full) else EXIT_USAGE
    return 0
