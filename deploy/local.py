#!/usr/bin/env python3
"""scripts/cluster.sh: the nodes of a cluster on this machine.

What is done to a node stands in host.py, as for a cluster on hosts of their own (launch.py).

The first start makes all data directories before any node runs, or none. A start begins nothing if one of its
nodes cannot listen or has no data of its own, and takes no other process's answers for those of its nodes.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import host
from host import Failure  # that a node did not start or stop: a line for each

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import program
from paxoskv.config import ClusterError, data_directory, load

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
HELP = """\
usage: scripts/cluster.sh COMMAND [ID] [--cluster FILE] [--data DIR]

  start          start all nodes, and wait until they answer (the first start makes the data directories)
  stop           stop all nodes: they finish what they have begun
  restart        stop, then start
  rolling        stop and start one node after the other, each when all others answer: nothing is interrupted
  status         what each node says of itself
  start ID       start one node, and wait until it answers
  stop ID        stop one node
  kill ID        end one node at once, as a crash would (kill -9)
  pause ID       stop one node's process where it stands (SIGSTOP)
  resume ID      let it go on (SIGCONT)

  --cluster FILE the cluster (default: cluster.json)
  --data DIR     data directories and logs (default: what the cluster's file says)

Exit codes: 0 done; 1 a node did not start or stop; 2 usage, or a bad cluster file; 130 Ctrl-C, which stops
what was being started; status: those of client.py.
"""


class Usage(Exception):
    """The command line or the cluster's file is wrong: one line."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see --help)")

    def format_help(self) -> str:
        return HELP


class Local:
    """One command for nodes of one cluster."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.file = Path(options.cluster).absolute()
        settings = self.settings = load(options.cluster)
        self.data = data_directory(options.data, settings, self.file).absolute()
        self.all = [node.id for node in settings.nodes]
        if options.id is not None and options.id not in self.all:
            raise Usage(f"{options.cluster} has no node {options.id} (it has {' '.join(map(str, self.all))})")
        self.ids = self.all if options.id is None else [options.id]
        for node in [] if options.data else self.all:  # no second cluster beside one that was made elsewhere
            old = Path(settings.data) / f"node-{node}"
            identity = old / "identity.json"
            ours = identity.exists() and settings.digest in identity.read_text()
            if ours and not self.directory(node).exists():
                where = f"{old} is here, but {options.cluster} has its data in {self.data}"
                raise Usage(f"{where}: move it, or give --data {settings.data}")

    def directory(self, node: int) -> Path:
        return self.data / f"node-{node}"

    def task(self, ids: Iterable[int]) -> dict[str, Any]:
        """As host.py wants it.

        Each node stays on one processor: else the kernel gathers them, because they wake one another.
        """
        nodes = [
            {"id": node.id, "host": node.host, "port": node.port, "words": ["--cpu", str(node.id)]}
            for node in self.settings.nodes
            if node.id in ids
        ]
        return {
            "directory": PROJECT, "data": self.data, "logs": self.data, "file": self.file,
            "cluster": self.settings.name, "digest": self.settings.digest, "nodes": nodes,
        }  # fmt: skip

    def pids(self, node: int) -> list[int]:
        return [pid for pid, _ in host.processes(self.task([]), node)]

    # ---- start

    def start(self) -> None:
        if not self.data.exists():
            self.check()  # what cannot be started leaves nothing behind, not even this directory
            self.data.mkdir(parents=True)
        with host.locked(self.task([])):  # two starts at once would make what the other makes
            fresh = self.check()
            if fresh:
                self.make()
            self.launch(fresh)
        answer = f"{len(self.ids)} nodes answer" if len(self.ids) > 1 else f"node {self.ids[0]} answers"
        print(answer, flush=True)
        print(f"what they run is {host.what_runs(self.task([]), sys.executable)}")

    def launch(self, fresh: bool = False) -> None:
        """Start the nodes that do not run, and wait until all take commands."""
        idle = [node for node in self.ids if not self.pids(node)]
        still = [node for node in self.ids if host.stands_still(self.pids(node))]
        if still:
            lines = (f"node {node} is paused: scripts/cluster.sh resume {node}" for node in still)
            raise Failure("\n".join(lines))
        for node in self.ids:
            if node not in idle:
                print(f"node {node} runs already", flush=True)
        task = self.task(self.ids)
        children: dict[int, Any] = {}
        try:
            for node in task["nodes"]:
                children[node["id"]] = host.begin(task, node, sys.executable)
            waits = f"waits up to {host.READY_S:g} s until they hear of a majority, and take commands"
            with program.patience(waits):
                self.expect(host.await_ready(task, sys.executable, children))
        except BaseException as error:
            if fresh or not isinstance(error, Failure):
                self.end(signal.SIGTERM, idle)
            refused = [node for node, child in children.items() if child and child.poll() == USAGE]
            if fresh and 2 * len(refused) > len(self.all):  # they never listened: nothing has been chosen
                self.discard(self.all)
            raise

    def check(self) -> bool:
        """Whether it is the first start. Failure, before anything is begun, if a node cannot start."""
        fresh = not any(self.directory(node).exists() for node in self.all)
        task = self.task(self.ids)
        reports = {node["id"]: host.look_at(task, node) for node in task["nodes"]}
        for node, found in reports.items():
            if "problem" in found:
                continue
            if fresh and self.ids != self.all:
                found["problem"] = (
                    "there is no data yet: the first start is of all nodes: scripts/cluster.sh start"
                )
            elif not fresh and not found["data"]:
                words = f"server.py --id {node} --cluster {self.file} --data {self.data} --rejoin"
                found["problem"] = (
                    f"its data directory {self.directory(node)} is missing, but others have theirs: "
                    f"if it is lost for good, start it once with: {words}"
                )
        self.expect(reports)
        return fresh

    def expect(self, reports: dict[Any, dict[str, Any]]) -> None:
        """Failure if there is a problem in one of the nodes' reports."""
        problems = [
            f"node {node}: {report['problem']}"
            for node, report in sorted(reports.items())
            if "problem" in report
        ]
        if problems:
            raise Failure("\n".join(problems))

    def make(self) -> None:
        """Make all data directories, or none."""
        from paxoskv.node.opening import make
        from paxoskv.storage.files import JournalError
        from paxoskv.wire.structs import Identity

        made: list[int] = []
        settings = self.settings
        names = (settings.name, settings.digest)
        try:
            for node in self.all:
                made.append(node)
                make(self.directory(node), Identity(*names, node, 1, 0, proposing=settings.named_way))
        except BaseException as error:
            self.discard(made)
            if isinstance(error, JournalError):
                raise Failure(str(error)) from error
            raise

    def discard(self, nodes: Iterable[int]) -> None:
        """Remove data directories that this start has made, and that nobody has used."""
        for node in nodes:
            shutil.rmtree(self.directory(node), ignore_errors=True)

    # ---- the others

    def end(self, number: int, nodes: Iterable[int]) -> None:
        """Stop these nodes, all at once."""
        nodes = list(nodes)
        with ThreadPoolExecutor(max(len(nodes), 1)) as pool:
            ends = list(pool.map(lambda node: host.end(self.task([]), node, number), nodes))
        for node, report in zip(nodes, ends, strict=True):
            print(f"node {node} {report['did']}")

    def stop(self) -> None:
        if not any(map(self.pids, self.all)):
            print(f"no node runs whose data is in {self.data}")
        else:
            self.end(signal.SIGTERM, self.ids)

    def restart(self) -> None:
        self.end(signal.SIGTERM, self.ids)
        self.start()

    def rolling(self) -> None:
        """One after the other, each when all nodes take commands."""
        for node in self.all:
            if not self.pids(node):
                raise Failure(f"node {node} does not run; start it first")
        for node in self.ids:
            self.await_all()
            self.ids = [node]
            try:
                self.end(signal.SIGTERM, [node])
                self.launch()
            except KeyboardInterrupt:
                if not self.pids(node):
                    how = f"scripts/cluster.sh start {node}"
                    print(f"cluster.sh: interrupted: node {node} is down: {how}", file=sys.stderr)
                raise
            print(f"node {node} is back", flush=True)
        self.await_all()

    def await_all(self) -> None:
        self.expect(host.await_ready(self.task(self.all), sys.executable, {}))

    def send(self, number: int) -> None:
        """Send a signal to the one node that the command is about."""
        pids = self.pids(self.ids[0])
        if not pids:
            raise Failure(f"node {self.ids[0]} does not run")
        if number == signal.SIGKILL:
            self.end(number, self.ids)
        else:
            os.kill(pids[0], number)
            print(f"node {self.ids[0]} {'stands still' if number == signal.SIGSTOP else 'goes on'}")


COMMANDS = {"start": Local.start, "stop": Local.stop, "restart": Local.restart, "rolling": Local.rolling}
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "resume": signal.SIGCONT}


def main() -> int:
    parser = Parser()
    parser.add_argument("command", choices=(*COMMANDS, *SIGNALS, "status"), metavar="COMMAND")
    parser.add_argument("id", type=int, nargs="?", metavar="ID")
    parser.add_argument("--cluster", metavar="FILE", default=str(PROJECT / "cluster.json"))
    parser.add_argument("--data", metavar="DIR")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    program.begin(called="cluster.sh")
    try:
        options = parser.parse_args()
        if options.command in SIGNALS and options.id is None:
            parser.error(f"{options.command} needs a node's id")
        program.begin(*program.PACKAGES)
        local = Local(options)
        if options.command == "status":
            client = [sys.executable, str(PROJECT / "client.py"), "status", "--cluster", options.cluster]
            return subprocess.run(client, check=False).returncode
        if options.command in SIGNALS:
            local.send(SIGNALS[options.command])
        else:
            COMMANDS[options.command](local)
    except (Usage, ClusterError) as error:
        print(f"cluster.sh: {error}", file=sys.stderr)
        return USAGE
    except Failure as failure:
        print("\n".join(f"cluster.sh: {line}" for line in str(failure).splitlines()), file=sys.stderr)
        return FAILED
    except OSError as error:
        if error.filename is None:  # the output
            raise
        print(f"cluster.sh: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
