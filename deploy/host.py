"""One host's part of scripts/launch.sh: sent over ssh as it is, and run there by whatever Python is found.

scripts/cluster.sh uses the same for the nodes of this machine (local.py).

It needs nothing but the standard library and Linux's /proc. On stdin come, after this text, one line of JSON
(the task) and the bytes that the task takes; on stdout goes one line of JSON, the report. What goes wrong in
general stands in the report as "error"; what concerns one node stands in its own report as "problem". Both
are one line that says what is wrong and what to do.

On the host, in the directory that cluster.json names:

    server.py ...        the copy of the project, with cluster.json
    .venv                its Python packages, unless the Python named in cluster.json has them
    data/node-N          the data directories (or wherever "data" says)
    run/node-N.log       what the servers say
    run/pushed.json      which files were copied, and their checksum
    run/lock             held while anything is changed
"""

import contextlib
import fcntl
import io
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

FREE = 320 << 20  # bytes: .venv takes 80 MiB, the journal 112 before its first checkpoint, data the rest
READY_S = 60.0  # within which a node that was started takes commands
REST_S = 2.0  # that are still given to the others when one has ended
STOP_S = 15.0  # within which a node that was told to stop ends; it gives its clients' requests 3 s
ENDS_S = 5.0  # within which a server ends that cannot use its settings
POLL_S = 0.05
SHOWN = 300  # characters of other programs' messages that are passed on
MOVED = re.compile(rb"node [0-9]+ was replaced: it is at [^ ,]+")  # as paxoskv/node/addresses.py says it
LOCK_S = 120.0  # for which another launch is waited for

Task = dict[str, Any]
Report = dict[str, Any]


class Failure(Exception):
    """One line: what is wrong with this host, and what to do."""


def place(task: Task) -> Path:
    """The project's directory; a relative one lies in the user's home."""
    return Path.home() / Path(task["directory"]).expanduser()


def data_of(task: Task, node: int) -> Path:
    return place(task) / Path(task["data"]).expanduser() / f"node-{node}"


def log_of(task: Task, node: int) -> Path:
    return Path(task.get("logs") or place(task) / "run") / f"node-{node}.log"


# ----------------------------------------------------------------------------------------------- processes


def processes(task: Task, node: int) -> list[tuple[int, bool]]:
    """(process id, whether it is the supervisor) of this node's server and supervisor.

    Found by what they are and whose data they have, not by a number in a file: such a number may be somebody
    else's after a reboot. Children that a server has forked are not counted.
    """
    found: dict[int, tuple[int, bool]] = {}
    data = os.path.realpath(data_of(task, node).parent)
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if not entry.name.isdecimal():
                continue
            words = Path(entry.path, "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = os.path.basename(words[1]) if len(words) > 1 else ""
            option = dict(itertools.pairwise(words))
            if program not in ("server.py", "supervise.py") or option.get("--id") != str(node):
                continue
            where = os.path.join(os.readlink(f"{entry.path}/cwd"), option.get("--data", "data"))
            if os.path.realpath(where) != data:
                continue
            parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = (parent, program == "supervise.py")
    return [
        (pid, supervisor)
        for pid, (parent, supervisor) in found.items()
        if parent not in found or found[parent][1] != supervisor
    ]


def stands_still(pids: Sequence[int]) -> bool:
    """Whether one of these processes was stopped where it stands."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return True
    return False


def server_pid(task: Task, node: int) -> int | None:
    return next((pid for pid, supervisor in processes(task, node) if not supervisor), None)


def end(task: Task, node: int, number: int = signal.SIGTERM) -> Report:
    """Stop a node: by this signal, then, after STOP_S, by force. What was acknowledged is on disk."""
    running = processes(task, node)
    if not running:
        return {"did": "did not run"}
    # The supervisor passes it on; told both, it could take the server's end for a crash.
    told = [pid for pid, supervisor in running if supervisor] or [pid for pid, _ in running]
    for pid, _ in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    for pid in told:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + STOP_S
    while processes(task, node):
        if time.monotonic() > deadline:
            for pid, _ in sorted(processes(task, node), key=lambda one: not one[1]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return {"did": f"did not stop within {STOP_S:g} s and was killed"}
        time.sleep(POLL_S)
    return {"did": "killed" if number == signal.SIGKILL else "stopped"}


# ---------------------------------------------------------------------------------------------------- look


def look(task: Task, _: BinaryIO) -> Report:
    """What there is on this host. With "make", the directory is made and the room on the disk checked."""
    if task.get("make"):
        check_directory(place(task))
    check = pushed(task).get("check")
    return {"nodes": {str(node["id"]): look_at(task, node) | {"pushed": check} for node in task["nodes"]}}


def check_directory(directory: Path) -> None:
    try:
        (directory / "run").mkdir(parents=True, exist_ok=True)
        probe = directory / "run" / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise Failure(f"{directory}: {what}: make it writable for {user()}, or name another") from None
    free = shutil.disk_usage(directory).free
    if free < FREE:
        raise Failure(
            f"disk full: {free >> 20} MiB are free at {directory}, {FREE >> 20} are needed: make room"
        )


def user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or f"user {os.getuid()}"


def look_at(task: Task, node: Report) -> Report:
    running = processes(task, node["id"])
    found: Report = {
        "pid": next((pid for pid, supervisor in running if not supervisor), None),
        "supervised": any(supervisor for _, supervisor in running),
        "data": data_of(task, node["id"]).exists(),
    }
    problem = whose(task, node["id"]) if found["data"] else None
    if running and not found["data"]:
        gone = f"runs (process {running[0][0]}), but its data is no longer at {data_of(task, node['id'])}"
        problem = f"{gone}: was it moved? move it back, or stop the node first"
    if problem is None and not running:
        problem = port_problem(node)
    return {**found, "problem": problem} if problem else found


def whose(task: Task, node: int) -> str | None:
    """What is wrong with a data directory: that it belongs to another cluster or node."""
    directory = data_of(task, node)
    try:
        identity = json.loads((directory / "identity.json").read_text())
        names = [identity[field] for field in ("cluster", "digest", "node")]
    except FileNotFoundError:
        return f"{directory} is the rest of a start that failed and holds no data: remove it, then try again"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{directory}/identity.json cannot be read ({error}): scripts/fsck.py tells more"
    cluster, digest, owner = names
    if cluster != task["cluster"]:
        return (
            f"{directory} holds the data of another cluster, {cluster!r}, not of {task['cluster']!r}: "
            "name another directory in cluster.json, or move it away"
        )
    if owner != node:
        return f"{directory} holds the data of node {owner}: move it to that node's host"
    if digest != task["digest"]:
        return (
            f"{directory} was made by a cluster.json with other nodes, or another way to propose: use that "
            "one (ids, hosts, ports and proposing cannot change)"
        )
    return None


def port_problem(node: Report) -> str | None:
    """Why the node could not listen at its address."""
    host, port = node["host"], node["port"]
    try:
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=False
        ):
            return None
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        if "in use" in what:
            taken = f"port {port} of {host} is taken by another program"
            return f"{taken}: end it (ss -ltnp shows it), or change port"
        if "cannot assign" in what:
            return f"{host} is no address of this host: correct host in cluster.json"
        return f"{host}:{port}: {what}: correct host and port in cluster.json"


# ---------------------------------------------------------------------------------------------------- push


def pushed(task: Task) -> Report:
    """What was copied last."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads((place(task) / "run" / "pushed.json").read_text())
        if isinstance(value, dict):
            return value
    return {}


def push(task: Task, payload: BinaryIO) -> Report:
    """Put the project's files in their places, each at once, and remove those that are no more."""
    directory = place(task)
    before = pushed(task).get("files", [])
    files: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(payload.read()), mode="r:") as archive:
            for member in archive:
                target = directory / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                new = target.with_name(target.name + ".new")
                if member.issym():
                    new.unlink(missing_ok=True)
                    new.symlink_to(member.linkname)
                else:
                    source = archive.extractfile(member)
                    assert source is not None, f"{member.name} is no file"
                    new.unlink(missing_ok=True)
                    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode)
                    with open(handle, "wb") as file:  # nobody else reads a key in between
                        file.write(source.read())
                new.replace(target)
                files.append(member.name)
        for name in set(before) - set(files):
            (directory / name).unlink(missing_ok=True)
        record = json.dumps({"check": task["check"], "files": files})
        (directory / "run" / "pushed.json").write_text(record)
    except OSError as error:
        raise Failure(disk_line(directory, error.strerror or str(error))) from None
    return {"nodes": {str(node["id"]): {"did": "copied"} for node in task["nodes"]}}


def disk_line(directory: Path, what: str) -> str:
    if "no space" in what.lower():
        return f"disk full: {directory}: make room on that disk"
    return f"{directory}: {what.lower()}"


# ----------------------------------------------------------------------------------------- Python packages

# Exits with 0 if this Python has what requirements.txt names, in those versions.
HAS_PACKAGES = """
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    for line in open("requirements.txt"):
        name, _, wanted = line.strip().partition("==")
        if name and version(name) != wanted: sys.exit(1)
    from thrift.protocol import fastbinary
except (PackageNotFoundError, ImportError):
    sys.exit(1)
"""


def python_of(task: Task) -> str:
    """The Python that runs the servers: cluster.json's, if it has the packages, else that of .venv."""
    named = shutil.which(os.path.expanduser(task["python"])) or task["python"]
    if subprocess.run([named, "-c", HAS_PACKAGES], cwd=place(task), check=False).returncode == 0:
        return named
    return str(place(task) / ".venv" / "bin" / "python")


def packages(task: Task) -> None:
    """Make .venv, unless the Python named in cluster.json has all packages already."""
    directory = place(task)
    python = python_of(task)
    if not python.startswith(str(directory)):
        return
    environment = {
        **os.environ,
        "PYTHON": os.path.expanduser(task["python"]),
        "PIP_NO_COMPILE": "1",  # what is used is compiled when it is used
        "LC_ALL": "C",
    }
    if (directory / "wheels").is_dir():
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory / "wheels")}
    done = subprocess.run(
        [directory / "scripts" / "setup.sh"], cwd=directory, env=environment, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        if "no space" in done.stdout.lower():
            raise Failure(disk_line(directory, "no space"))
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        wrong = [line for line in lines if line.startswith(("ERROR", "setup.sh:"))] or lines or ["no reason"]
        offline = "without a package index: scripts/launch.sh up --wheels DIR"
        raise Failure(f"its Python packages: {wrong[-1][:SHOWN]} ({offline})")


# --------------------------------------------------------------------------------------------------- start


# Prints one line, what is known of each node, when all of them take commands or the time is over.
AWAIT_READY = """
import json, sys, time
from dataclasses import replace
sys.path[:0] = [sys.argv[1]]
from paxoskv import Client, ClientError, load
settings = load(sys.argv[2])
if settings.tls:  # there is no client's certificate at a node's host
    settings = replace(settings, tls=settings.tls.of("node-" + sys.argv[4]))
states = {node: {} for node in map(int, sys.argv[4:])}
end = time.monotonic() + float(sys.argv[3])
with Client(settings, timeout=2) as client:
    while True:
        for node in states:
            try:
                status = client.status(node)
                states[node] = {"ready": status.ready, "connected": list(status.connected)}
            except ClientError:
                states[node] = {}
        if all(state.get("ready") for state in states.values()) or time.monotonic() > end:
            break
        time.sleep(0.05)
print(json.dumps(states))
"""


def prepare(task: Task, payload: BinaryIO) -> Report:
    """Take the project's files, if they are sent along, then make the Python environment."""
    if "check" in task:
        push(task, payload)
    packages(task)
    return {"nodes": {str(node["id"]): {} for node in task["nodes"]}}


def start(task: Task, _: BinaryIO) -> Report:
    """Start the nodes asked for, unless they run, and wait until they take commands."""
    python = python_of(task)
    children = {node["id"]: begin(task, node, python) for node in task["nodes"]}
    return {"nodes": await_ready(task, python, children), "runs": what_runs(task, python)}


def what_runs(task: Task, python: str) -> str:
    """What servers that start now run, in a line; has the modules compiled for the next start."""
    environment = {**os.environ, "LC_ALL": "C"}
    if task.get("interpreted") or (place(task) / "wheels").is_dir():  # those have no compiler among them
        environment["PAXOSKV_INTERPRETED"] = "1"
    done = subprocess.run(
        [python, str(place(task) / "tools" / "compile.py"), "--background"], env=environment, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, errors="replace",
    )  # fmt: skip
    return done.stdout.strip() or "interpreted: tools/compile.py has failed"


def ready(task: Task, _: BinaryIO) -> Report:
    """Wait until the nodes, which run, take commands."""
    return {"nodes": await_ready(task, python_of(task), {})}


def begin(task: Task, node: Report, python: str) -> "subprocess.Popen[bytes] | None":
    """Start one server that outlives this session, unless it runs."""
    if processes(task, node["id"]):
        return None
    data = str(Path(task["data"]).expanduser())
    command = [python, str(place(task) / "deploy" / "supervise.py")] if task.get("restart") else [python]
    command += [str(place(task) / "server.py"), "--id", str(node["id"]), "--cluster", file_of(task)]
    command += ["--data", data, *node.get("words", [])]
    with log_of(task, node["id"]).open("ab") as output:
        node["offset"] = output.tell()
        return subprocess.Popen(
            command, cwd=place(task), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def file_of(task: Task) -> str:
    return str(task.get("file", "cluster.json"))


def await_ready(
    task: Task, python: str, children: dict[int, "subprocess.Popen[bytes] | None"]
) -> dict[str, Report]:
    """Until all nodes take commands, or one has ended, or the time is over: by id, what became of each.

    `children`: those of their processes that were started here.
    """
    found: dict[str, Report] = {}
    nodes, seconds = {node["id"]: node for node in task["nodes"]}, READY_S
    while nodes:
        command = [python, "-c", AWAIT_READY, str(place(task)), file_of(task), str(seconds)]
        waiter = subprocess.Popen(
            [*command, *map(str, nodes)], cwd=place(task), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + seconds + ENDS_S
        try:
            while not (gone := gone_of(task, nodes, children)) and time.monotonic() < deadline:
                if waiter.poll() is not None and all(listens(task, node) for node in nodes.values()):
                    break
                time.sleep(POLL_S)
        finally:
            waiter.kill()
            output, errors = waiter.communicate()
        if not gone and waiter.returncode:
            lines = errors.decode(errors="replace").splitlines() or ["no reason"]
            gone = dict.fromkeys(nodes, f"runs, but nobody can ask it: {lines[-1][:SHOWN]}")
        elif not gone:
            states = {int(node): state for node, state in json.loads(output).items()}
            return found | {
                str(node): outcome(task, nodes[node], state, children.get(node), seconds)
                for node, state in states.items()
            }
        found |= {str(node): {"problem": problem} for node, problem in gone.items()}
        nodes = {node: nodes[node] for node in nodes if node not in gone}
        seconds = REST_S
    return found


def gone_of(task: Task, nodes: dict[int, Report], children: dict[int, Any]) -> dict[int, str]:
    """By id, why nodes have ended."""
    gone = {}
    for node in nodes:
        child = children.get(node)
        if child is not None and child.poll() is not None:
            gone[node] = ended(task, nodes[node], child.returncode)
        elif child is None and not processes(task, node):
            gone[node] = f"node {node} does not run"
        elif child is not None and (moved := MOVED.search(log_since(task, nodes[node]))):
            gone[node] = f"it is refused by the others: {moved[0].decode()}"
    return gone


def listens(task: Task, node: Report) -> bool:
    """Whether a process that was started here listens; until then, answers come from somebody else's."""
    if "offset" not in node:
        return True
    return b"event=listening" in log_since(task, node)


def log_since(task: Task, node: Report) -> bytes:
    """What a node that was started here has logged since."""
    with log_of(task, node["id"]).open("rb") as log:
        log.seek(node["offset"])
        return log.read()


def outcome(task: Task, node: Report, state: Report, child: object, seconds: float) -> Report:
    """What is to be said of a node that runs."""
    if not state.get("ready") or not listens(task, node):
        return {"problem": not_ready(node, state, log_of(task, node["id"]), seconds)}
    did = "runs already" if child is None else "started"
    return {"did": did, "pid": server_pid(task, node["id"])}


def ended(task: Task, node: Report, code: int) -> str:
    """Why a server ended that had just been started: its own last line."""
    lines = log_since(task, node).decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")[:SHOWN]
    if "no space" in last.lower():
        return f"disk full: {last}: make room"
    if "in use" in last.lower():
        return f"port {node['port']} is taken by another program: {last}"
    return f"ended at once (exit code {code}): {last}"


def not_ready(node: Report, state: Report, log: Path, seconds: float) -> str:
    if not state:
        return f"runs, but does not answer at {node['host']}:{node['port']} after {seconds:g} s: see {log}"
    peers = ", ".join(map(str, state.get("connected") or [])) or "no other node"
    return (
        f"runs, but takes no commands after {seconds:g} s: connected to {peers}; a majority is needed: "
        f"are the others up, and can they reach {node['host']}:{node['port']}?"
    )


# ---------------------------------------------------------------------------------------------------- rest


def stop(task: Task, _: BinaryIO) -> Report:
    return {"nodes": {str(node["id"]): end(task, node["id"]) for node in task["nodes"]}}


def reload(task: Task, payload: BinaryIO) -> Report:
    """Take the files, then let the servers read their certificates again."""
    push(task, payload)

    def one(node: int) -> Report:
        pid = server_pid(task, node)
        if pid is None:
            return {"problem": "does not run"}
        os.kill(pid, signal.SIGHUP)
        return {"did": "reads its certificates again"}

    return {"nodes": {str(node["id"]): one(node["id"]) for node in task["nodes"]}}


def logs(task: Task, stdin: BinaryIO) -> None:
    """Print the ends of the logs, each line after its node; to follow them, until stdin is closed."""
    offsets: dict[int, int] = {}
    while True:
        for node in [node["id"] for node in task["nodes"]]:
            for line in lines_of(log_of(task, node), node, offsets, task["lines"]):
                print(f"node {node} | {line}")
        sys.stdout.flush()
        if not task["follow"]:
            return
        if select.select([stdin], [], [], 0.3)[0] and not stdin.read(1):
            return


def lines_of(path: Path, node: int, offsets: dict[int, int], last: int) -> Iterator[str]:
    """Whole lines that are new; at first the last so many."""
    if not path.exists():
        if node not in offsets:
            offsets[node] = 0
            yield f"({path} is not there yet)"
        return
    with path.open("rb") as file:
        first = node not in offsets
        size = file.seek(0, os.SEEK_END)
        file.seek(offsets[node] if not first and offsets[node] <= size else 0)
        lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            file.seek(-len(lines.pop()), os.SEEK_CUR)
        offsets[node] = file.tell()
    yield from (line.decode(errors="replace").rstrip() for line in (lines[-last:] if first else lines))


@contextlib.contextmanager
def locked(task: Task) -> Iterator[None]:
    """Two launches at once would start what the other stops."""
    directory = log_of(task, 0).parent
    if not directory.is_dir():
        yield
        return
    with (directory / "lock").open("w") as file:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failure(
                        "another launch has been at work here for two minutes: wait for it"
                    ) from None
                time.sleep(POLL_S)
        os.set_inheritable(file.fileno(), False)
        yield


ACTIONS: dict[str, Callable[[Task, BinaryIO], Report]] = {
    action.__name__: action for action in (look, push, prepare, start, ready, reload, stop)
}


def main() -> None:
    stdin = sys.stdin.buffer
    task = json.loads(stdin.readline())
    if task["action"] == "logs":
        with contextlib.suppress(BrokenPipeError):
            logs(task, stdin)
        return
    try:
        with locked(task) if task["action"] != "look" else contextlib.nullcontext():
            report = ACTIONS[task["action"]](task, stdin)
    except Failure as failure:
        report = {"error": str(failure)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
