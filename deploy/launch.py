#!/usr/bin/env python3
"""scripts/launch.sh: a cluster on hosts that are reached over ssh.

For each host one ssh session at a time, all hosts side by side. What is done at a host stands in host.py,
which is sent along; here stands what is done where, and what an error means. Nothing but OpenSSH's `ssh` and
a Python 3.11 at each host is needed, and the project is copied through ssh as well.

The data directories are made once in a cluster's life, when no host has one. That must be known of every
host: so the first start begins only when all of them are reached, and later a host without its data is not
given an empty directory (it could vote twice) but told to rejoin.
"""

import argparse
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from host import SHOWN, Failure

PROJECT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from paxoskv import program

program.begin(called="launch.sh")

from paxoskv.config import Cluster, ClusterError, Member, load

DONE, FAILED, USAGE = 0, 1, 2
COPYING = ("up", "push", "reload", "rolling")  # commands that bring files to the hosts
CONNECT_S = 10  # seconds for a connection; a host that is up answers in one
ALIVE_S = 5  # seconds between two signs of life in a session; three missing ones end it
LINES = 50  # of each log, if not said otherwise
WANTED = (
    "*.py", "*.thrift", "*.txt", "*.toml", "*.md", "gen-py/**/*.py",
    "paxoskv/**/*.py", "paxoskv/kvstore", "scripts/*", "deploy/*", "tools/*",
    "docs/*",
)  # fmt: skip

HELP = """\
Start and stop a cluster on the hosts that cluster.json names, over ssh.

commands:
  up        copy the project, make .venv and (the first time) the data directories, start all nodes, and
            wait until they take commands
  down      stop all nodes; everything stays where it is
  status    what runs on the hosts, then what the nodes say of themselves
  logs      the ends of the nodes' logs
  push      copy the project and cluster.json, and nothing else
  reload    copy them, and let the nodes read new certificates (scripts/make_certs.sh) without a restart
  rolling   copy the project, then restart one node after the other, each when all others are ready

All can be repeated: what is done already is left as it is.
"""
EXIT_CODES = """\
exit codes:
  0  done, on all hosts
  1  a host failed; its line says why, and what to do
  2  usage, or a cluster file that cannot be used
"""
# What ssh says when it fails, and what that means. {at} is USER@HOST, {port} an option or nothing.
MEANINGS: Final = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed: if the host was set up anew: ssh-keygen -R {name}",
    ),
    ("Host key verification failed", "its host key is not known: log in once to accept it: ssh {port}{at}"),
    ("Permission denied", "the key is refused: put yours there: ssh-copy-id {port}{at}"),
    ("Too many authentication failures", "too many keys were tried: name one, \"key\" in cluster.json"),
    ("Could not resolve hostname", "the name is unknown: correct host (or ssh_host) in cluster.json"),
    ("Connection refused", "no ssh server listens there: start sshd, or correct ssh_port in cluster.json"),
    ("No route to host", "no route to it: is it up, and connected to this network?"),
    ("port {number}: Invalid argument", "no route to it: a blackhole route stands before it (ip route)"),
    ("Network is unreachable", "no route to it: is this machine connected to its network?"),
    ("Connection timed out", "no route to it: no answer: is it up, does a firewall drop port {number}?"),
    ("not responding", "the connection broke: it no longer answers"),
    ("Connection closed by", "its ssh server hung up: its log says why"),
    ("Connection reset by", "its ssh server hung up: its log says why"),
    ("Bad configuration option", "ssh's configuration cannot be used: {last}"),
)  # fmt: skip
NO_PYTHON, OLD_PYTHON = 97, 98  # exit codes of the line below
# Runs at the host, by its shell: is there a Python, is it new enough? Then it gets host.py.
SHELL: Final = """\
command -v {python} >/dev/null 2>&1 || exit {NO_PYTHON}
{python} -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {{ {python} -V; exit {OLD_PYTHON}; }}
exec {python} -c {boot}"""
BOOT: Final = "import sys; f = sys.stdin.buffer; exec(compile(f.read(int(f.readline())), 'host.py', 'exec'))"


@dataclass
class Host:
    """One directory of one host, with the nodes that live there; almost always one."""

    name: str
    user: str | None
    port: int | None
    key: str | None
    directory: str
    python: str
    nodes: list[Member] = field(default_factory=list)

    @property
    def at(self) -> str:
        return f"{self.user}@{self.name}" if self.user else self.name


def described(node: Member) -> dict[str, Any]:
    return {"id": node.id, "host": node.host, "port": node.port}


def hosts_of(cluster: Cluster) -> list[Host]:
    """Where the nodes live. Nodes that share a directory share a host, too: the project is copied once."""
    hosts: dict[tuple[object, ...], Host] = {}
    for node in cluster.nodes:
        ssh = cluster.ssh
        host = Host(
            node.ssh_host or node.host, node.ssh_user or ssh.user, node.ssh_port or ssh.port, ssh.key,
            node.directory or ssh.directory, node.python or ssh.python,
        )  # fmt: skip
        hosts.setdefault((host.name, host.user, host.port, host.directory), host).nodes.append(node)
    return list(hosts.values())


# ----------------------------------------------------------------------------------------------------- ssh


class Hosts:
    """Tasks for hosts over ssh; a report for each, or the line that says what went wrong."""

    def __init__(self, cluster: Cluster, config: str | None) -> None:
        self.cluster = cluster
        self.config = config
        self.all = hosts_of(cluster)
        self.agent = (PROJECT / "deploy" / "host.py").read_bytes()

    def command(self, host: Host) -> list[str]:
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
        words += ["-o", f"ServerAliveInterval={ALIVE_S}", "-o", "ServerAliveCountMax=3"]
        words += ["-F", self.config] if self.config else []
        words += ["-l", host.user] if host.user else []
        words += ["-p", str(host.port)] if host.port else []
        words += ["-o", "IdentitiesOnly=yes", "-i", os.path.expanduser(host.key)] if host.key else []
        script = SHELL.format(
            python=tilde(host.python), boot=shlex.quote(BOOT), NO_PYTHON=NO_PYTHON, OLD_PYTHON=OLD_PYTHON
        )
        return [*words, "--", host.name, f"sh -c {shlex.quote(script)}"]

    def task(self, host: Host, action: str, **more: Any) -> bytes:
        """What the host's Python reads: host.py, and what it shall do."""
        task = {
            "action": action, "directory": host.directory, "data": self.cluster.data, "python": host.python,
            "cluster": self.cluster.name, "digest": self.cluster.digest,
            "nodes": [described(node) for node in host.nodes],
        }  # fmt: skip
        return b"%d\n%s%s\n" % (len(self.agent), self.agent, json.dumps(task | more).encode())

    def run(self, host: Host, action: str, payload: bytes = b"", **more: Any) -> dict[str, Any]:
        """One session. Failure, in one line, if there is no report, or it says that the host failed."""
        done = subprocess.run(
            self.command(host), input=self.task(host, action, **more) + payload, capture_output=True,
            env={**os.environ, "LC_ALL": "C"}, check=False,
        )  # fmt: skip
        output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode == 0:
            for line in reversed(output.splitlines()):  # a login script may have printed something before
                if line.startswith("{"):
                    report: dict[str, Any] = json.loads(line)
                    if "error" in report:
                        raise Failure(report["error"])
                    return report
        raise Failure(meaning(host, done.returncode, output, errors))

    def each(self, hosts: Iterable[Host], work: Callable[[Host], Any]) -> dict[int, Any]:
        """Do this for all hosts side by side: by node, what it gave for its host, or the Failure."""

        def one(host: Host) -> Any:
            try:
                return work(host)
            except Failure as failure:
                return failure

        hosts = list(hosts)
        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            results = list(pool.map(one, hosts))
        return {node.id: result for host, result in zip(hosts, results, strict=True) for node in host.nodes}


def tilde(python: str) -> str:
    """Quoted for a shell, but for the tilde that it shall replace by the user's home."""
    return "~/" + shlex.quote(python[2:]) if python.startswith("~/") else shlex.quote(python)


def meaning(host: Host, code: int, output: str, errors: str) -> str:
    """What went wrong in a session, and what to do, in one line."""
    lines = [line.strip() for line in (errors or output).splitlines() if line.strip()]
    last = lines[-1][:SHOWN] if lines else f"exit code {code}"
    if code == NO_PYTHON:
        return f"there is no {host.python}: install Python 3.11 or later, or correct python in cluster.json"
    if code == OLD_PYTHON:
        version = output.strip() or errors.strip()
        remedy = "install it, name it as python in cluster.json"
        return f"Python too old: {host.python} is {version}, 3.11 is needed: {remedy}"
    port = f"-p {host.port} " if host.port else ""
    if code == 255:
        for sign, text in MEANINGS:
            if sign.format(number=host.port or 22) in errors:
                return text.format(at=host.at, name=host.name, port=port, number=host.port or 22, last=last)
    if "no space left" in errors.lower():
        return f"disk full: make room ({last})"
    return last


# ------------------------------------------------------------------------------------------------ the copy


def private(cluster: Cluster, file: Path, host: Host) -> dict[str, Path]:
    """What only this host gets: by its place beside cluster.json, the secret, certificates and keys.

    What is named by an absolute path is not copied.
    """
    paths = [cluster.secret] if cluster.secret else []
    for node in host.nodes if cluster.tls else []:
        own = cluster.tls.of(f"node-{node.id}")
        paths += [own.authority, own.certificate, own.key]
    beside = (Path(os.path.relpath(path, file.parent)) for path in paths)
    return {str(path): file.parent / path for path in beside if ".." not in path.parts}


def archive(file: Path, wheels: Path | None, secrets: dict[str, Path]) -> tuple[str, bytes]:
    """What is copied, as a tar archive, and its checksum: the same for the same files."""
    paths = {
        path.relative_to(PROJECT).as_posix(): path
        for pattern in WANTED
        for path in PROJECT.glob(pattern)
        if (path.is_file() or path.is_symlink()) and "__pycache__" not in path.parts
    }
    paths |= secrets | {"cluster.json": file}
    paths |= {f"wheels/{path.name}": path for path in sorted(wheels.glob("*.whl"))} if wheels else {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as tar:
        for name, path in sorted(paths.items()):
            entry = tarfile.TarInfo(name)
            if path.is_symlink() and name.startswith("paxoskv/"):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
                tar.addfile(entry)
                continue
            entry.size = path.stat().st_size
            entry.mode = 0o600 if name in secrets else 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as source:
                tar.addfile(entry, source)
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


# ------------------------------------------------------------------------------------------------ commands


class Launch:
    """One command on all hosts; `lines` has what is said of each node in the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.file = Path(options.cluster)
        self.cluster = load(self.file)
        self.hosts = Hosts(self.cluster, options.ssh_config)
        self.lines: dict[int, tuple[bool, str]] = {}

    def say(self, node: int, good: bool, text: str) -> None:
        """What is to be said of a node: once, the first time counts."""
        self.lines.setdefault(node, (good, text))

    def reports(self, results: dict[int, Any]) -> dict[int, dict[str, Any]]:
        """Say what failed, and which problems there are; gives back the reports on the nodes asked for."""
        for node, result in results.items():
            if isinstance(result, Failure):
                self.say(node, False, str(result))
        found = {node: result for node, result in results.items() if not isinstance(result, Failure)}
        reports = {node: result["nodes"].get(str(node)) for node, result in found.items()}
        for node, report in reports.items():
            if report and "problem" in report:
                self.say(node, False, report["problem"])
        return {node: report for node, report in reports.items() if report is not None}

    def tell(self, results: dict[int, Any]) -> int:
        """Say what was done, or failed, and print it; returns the exit code."""
        for node, report in self.reports(results).items():
            self.say(node, True, report.get("did", ""))
        return self.report()

    def report(self) -> int:
        """Print a line for each node; returns the exit code."""
        for node in self.cluster.nodes:
            good, text = self.lines.get(node.id, (True, "nothing was done"))
            print(f"node {node.id} ({node.host}:{node.port}): {'' if good else 'FAILED: '}{text}")
        return DONE if all(good for good, _ in self.lines.values()) else FAILED

    def look(self, make: bool) -> dict[int, dict[str, Any]]:
        """By node, what there is of it: pid, supervised, data, problem, pushed. Says what is wrong."""
        return self.reports(self.every("look", make=make))

    def every(self, action: str, **more: Any) -> dict[int, Any]:
        """Do this on all hosts."""
        return self.hosts.each(self.hosts.all, lambda host: self.hosts.run(host, action, **more))

    def archive(self, host: Host) -> tuple[str, bytes]:
        """What this host gets, and its checksum."""
        secrets = private(self.cluster, self.file, host)
        return archive(self.file, self.options.wheels, secrets)

    # ---- up

    def up(self) -> int:
        found = self.look(make=True)
        data = [node for node, state in found.items() if state["data"]]
        rejoin = set(self.options.rejoin)
        if not data and (self.lines or rejoin):
            known = "no host that was reached has data" if self.lines else "no host has data to rejoin"
            for node in found:
                self.say(node, False, f"not started: {known}, and a cluster begins on all hosts or none")
            self.report()
            return self.summary()
        lost = [node for node in found if data and node not in data and node not in rejoin]
        for node in lost:
            command = f"scripts/launch.sh up --rejoin {node}"
            self.say(
                node, False,
                f"its data directory is missing, but others have theirs: if it is lost for good: {command}",
            )  # fmt: skip
        for node in rejoin & set(data):
            self.say(node, False, f"its data directory is there: start it without --rejoin {node}")
        how = {node: ["--rejoin"] if node in rejoin else [] if data else ["--init"] for node in found}
        stale = self.prepare(found)
        if not data and self.lines:
            for node in found:
                self.say(node, False, "not started: a cluster begins on all hosts or none")
        self.started(self.hosts.each(self.wanted(), lambda host: self.start(host, how)), stale)
        self.report()
        return self.summary()

    def wanted(self) -> list[Host]:
        """Hosts with a node of which nothing has been said yet."""
        return [host for host in self.hosts.all if self.left(host)]

    def left(self, host: Host) -> list[Member]:
        return [node for node in host.nodes if node.id not in self.lines]

    def prepare(self, found: dict[int, dict[str, Any]]) -> set[int]:
        """Copy files and make environments where nothing runs. Gives the nodes with old files."""
        archives = {node.id: self.archive(host) for host in self.hosts.all for node in host.nodes}
        stale = {node for node, state in found.items() if state["pushed"] != archives[node][0]}
        idle = [host for host in self.wanted() if not any(found[node.id]["pid"] for node in host.nodes)]

        def work(host: Host) -> Any:
            if host.nodes[0].id in stale:
                check, tar = archives[host.nodes[0].id]
                return self.hosts.run(host, "prepare", tar, check=check)
            return self.hosts.run(host, "prepare")

        self.reports(self.hosts.each(idle, work))
        return stale - {node.id for host in idle for node in host.nodes}

    def start(self, host: Host, how: dict[int, list[str]]) -> dict[str, Any]:
        nodes = [described(node) | {"words": how[node.id]} for node in self.left(host)]
        interpreted = bool(os.environ.get("PAXOSKV_INTERPRETED"))
        return self.hosts.run(
            host, "start", nodes=nodes, restart=self.options.restart, interpreted=interpreted
        )

    def started(self, results: dict[int, Any], stale: set[int]) -> None:
        """Say what came of starting them."""
        for node, state in self.reports(results).items():
            if "problem" not in state:
                old = ", with older files than yours: scripts/launch.sh rolling" if node in stale else ""
                self.say(node, True, f"{state['did']} (process {state['pid']}), ready{old}")
        for line in sorted({result["runs"] for result in results.values() if isinstance(result, dict)}):
            print(f"what they run is {line}")

    def summary(self) -> int:
        """The whole in one line: up, half started, or down; returns the exit code."""
        total = len(self.cluster.nodes)
        up = sorted(node for node, (good, _) in self.lines.items() if good)
        missing = ", ".join(str(node.id) for node in self.cluster.nodes if node.id not in up)
        if len(up) == total:
            print(f"up: all {total} nodes are ready")
        elif up:
            answers = "a majority, so the cluster answers" if 2 * len(up) > total else "too few to answer"
            print(f"half started: {len(up)} of {total} nodes are ready ({answers}); not: {missing}")
        else:
            print(f"not started: none of {total} nodes is ready")
        return DONE if len(up) == total else FAILED

    # ---- the others

    def down(self) -> int:
        return self.tell(self.every("stop"))

    def reload(self) -> int:
        """Bring new certificates and let the nodes read them."""

        def work(host: Host) -> Any:
            check, tar = self.archive(host)
            self.hosts.run(host, "look", make=True)
            return self.hosts.run(host, "reload", tar, check=check)

        return self.tell(self.hosts.each(self.hosts.all, work))

    def push(self) -> int:
        def work(host: Host) -> Any:
            check, tar = self.archive(host)
            found = self.hosts.run(host, "look", make=True)["nodes"]
            if all(state["pushed"] == check for state in found.values()):
                return {"nodes": {node: {"did": "has these files already"} for node in found}}
            return self.hosts.run(host, "push", tar, check=check)

        return self.tell(self.hosts.each(self.hosts.all, work))

    def status(self) -> int:
        for node, state in self.look(make=False).items():
            if state["pid"]:
                by = ", restarted when it crashes" if state["supervised"] else ""
                self.say(node, True, f"runs (process {state['pid']}{by})")
            else:
                data = "has data" if state["data"] else "has no data yet"
                self.say(node, False, f"does not run ({data}): scripts/launch.sh up")
        code = self.report()
        running = sum(good for good, _ in self.lines.values())
        total = len(self.cluster.nodes)
        if 0 < running < total:
            print(f"half started: {running} of {total} nodes run")
        sys.stdout.flush()
        client = [sys.executable, str(PROJECT / "client.py"), "status", "--cluster", str(self.file)]
        return code or (FAILED if subprocess.run(client, check=False).returncode else DONE)

    def logs(self) -> int:
        """Print them side by side as they come."""
        wanted = [host for host in self.hosts.all if self.chosen(host)]
        lock = threading.Lock()

        def follow(host: Host) -> None:
            task = self.hosts.task(
                host, "logs", lines=self.options.lines, follow=self.options.follow,
                nodes=[{"id": node.id} for node in self.chosen(host)],
            )  # fmt: skip
            session = subprocess.Popen(
                self.hosts.command(host), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
            assert session.stdin and session.stdout and session.stderr
            session.stdin.write(task)
            session.stdin.flush()
            for line in session.stdout:
                with lock:
                    print(line.decode(errors="replace"), end="", flush=True)
            errors = session.stderr.read().decode(errors="replace")
            session.stdin.close()
            if session.wait():
                raise Failure(meaning(host, session.returncode, "", errors))

        failed = self.hosts.each(wanted, follow)
        for node in (node for host in wanted for node in self.chosen(host)):
            if failed[node.id] is not None:
                print(f"node {node.id} ({node.host}:{node.port}): FAILED: {failed[node.id]}")
        return FAILED if any(failed.values()) else DONE

    def chosen(self, host: Host) -> list[Member]:
        return [node for node in host.nodes if self.options.node in (None, node.id)]

    def rolling(self) -> int:
        """Restart one after the other; it ends at the first node that does not come back."""
        found = self.look(make=True)
        for node, state in found.items():
            if not state["pid"]:
                reason = "does not run, and without another one there may be no majority: up first"
                self.say(node, False, reason)
        if self.lines:
            for node in found:
                self.say(node, False, "not restarted: another node needs attention first")
            return self.report()
        for host in self.hosts.all:
            for node in host.nodes:
                result = self.hosts.each([host], lambda host, node=node: self.renew(host, node, found))
                self.started({node.id: result[node.id]}, set())
                good, text = self.lines[node.id]
                print(f"node {node.id}: {text}", flush=True)
                if not good:
                    return FAILED
        return DONE

    def renew(self, host: Host, node: Member, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Bring one node to the new files and back, when all others are ready."""
        for other, report in self.every("ready").items():  # those restarted before, too: by now they must be
            problem = report if isinstance(report, Failure) else report["nodes"][str(other)].get("problem")
            if problem:
                raise Failure(f"not restarted: node {other} is to be ready first: {problem}")
        check, tar = self.archive(host)
        self.hosts.run(host, "prepare", tar, check=check)
        one = [described(node)]
        self.hosts.run(host, "stop", nodes=one)
        restart = self.options.restart or found[node.id]["supervised"]
        return self.hosts.run(host, "start", nodes=one, restart=restart)


# --------------------------------------------------------------------------------------------- command line


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/launch.sh", description=HELP, epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = ("up", "down", "status", "logs", "push", "reload", "rolling")
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    parser.add_argument("--cluster", metavar="FILE", default=str(PROJECT / "cluster.json"),
                        help="the cluster (default: cluster.json of the project)")  # fmt: skip
    parser.add_argument("--restart", action="store_true",
                        help="up, rolling: start each server again when it crashes")  # fmt: skip
    parser.add_argument("--rejoin", metavar="ID", type=int, action="append", default=[],
                        help="up: this node has lost its disk for good; may be repeated")  # fmt: skip
    parser.add_argument("--wheels", metavar="DIR", type=Path,
                        help="up, push, rolling: install the packages from these files, for hosts without a "
                             "package index; made by: pip wheel -r requirements.txt -w DIR")  # fmt: skip
    parser.add_argument("--ssh-config", metavar="FILE", help="ssh's configuration, instead of ~/.ssh/config")
    parser.add_argument("--node", metavar="ID", type=int, help="logs: of this node only")
    parser.add_argument("--lines", metavar="N", type=int, default=LINES,
                        help="logs: this many of each (default: %(default)s)")  # fmt: skip
    parser.add_argument("--follow", action="store_true", help="logs: go on with what comes, until Ctrl-C")
    return parser


def complaint(launch: Launch) -> str | None:
    """What is wrong with the options, or missing here, in one line."""
    options, cluster = launch.options, launch.cluster
    ids = {node.id for node in cluster.nodes}
    for name, asked in (("--rejoin", set(options.rejoin)), ("--node", {options.node} - {None})):
        if asked - ids:
            return f"{name}: {options.cluster} has no node {min(asked - ids)}"
    if options.wheels and not list(options.wheels.glob("*.whl")):
        return f"--wheels: there are no wheels in {options.wheels}"
    for host in launch.hosts.all if options.command in COPYING else []:
        for path in private(cluster, launch.file, host).values():
            if not path.exists():
                field = "secret" if str(path) == cluster.secret else "tls"
                how = f"umask 077; head -c 32 /dev/urandom | base64 > {path}"
                how = how if field == "secret" else f"scripts/make_certs.sh {launch.file} {path.parent}"
                return f"{launch.file}: {field}: there is no {path}: make it once: {how}"
    if options.lines < 1:
        return f"--lines: {options.lines} is not a number of lines"
    return None


def main() -> int:
    options = arguments().parse_args()
    try:
        launch = Launch(options)
        wrong = complaint(launch)
        if wrong:
            print(f"launch.sh: {wrong}", file=sys.stderr)
            return USAGE
        return int(getattr(launch, options.command)())
    except ClusterError as error:
        print(f"launch.sh: {error}", file=sys.stderr)
        return USAGE
    except FileNotFoundError as error:
        print(
            f"launch.sh: {error.filename}: not found (Debian: apt-get install openssh-client)",
            file=sys.stderr,
        )
        return USAGE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
