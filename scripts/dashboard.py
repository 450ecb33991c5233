#!/usr/bin/env python3
"""The live page of a cluster: nodes, logs, links and figures as they change, and a box for commands.

    scripts/dashboard.py                  of the cluster in cluster.json; its nodes are started if none runs
    scripts/dashboard.py --demo           of five nodes of its own, with buttons: kill, pause, cut a link, ...
    scripts/dashboard.py --demo --proposing classic
    scripts/demo.sh --page                the same as --demo, from a fresh clone

It prints a link, to be opened in a browser on this machine. Nobody else reaches the page. The token in the
link lets this page press buttons, and no page from elsewhere. Ctrl-C ends it, and stops the nodes that it
started.

Exit status: 130 after Ctrl-C; 1 the nodes did not start; 2 usage; 3 no node can be reached, and they are not
on this machine.
"""

import _signal  # what `signal` is made of: it takes no time to import
import sys

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is not _signal.SIG_IGN:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # while it imports, too: there is nothing to tidy up

import argparse
import asyncio
import contextlib
import hmac
import itertools
import json
import secrets
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paxoskv import program

program.begin(*program.PACKAGES)

from paxoskv.client.aio import AsyncClient
from paxoskv.client.health import View, as_data
from paxoskv.client.operations import ClientError, NoNodeReachable, WrongCluster
from paxoskv.client.output import INTERRUPTED, NEGATIVE, UNREACHABLE, USAGE, escaped, remark, say
from paxoskv.config import WAYS, Cluster, ClusterError, load, load_faults
from paxoskv.node.identity import is_loopback
from paxoskv.wire.connection import new_event_loop

PAGE = Path(__file__).with_suffix(".html")
PERIOD_S = 0.5  # between two looks at the nodes, while somebody looks at the page
QUICK_S = 0.2  # for which a look waits for slow nodes; what they say then is in the next one
SILENT_S = 0.8  # after which a node that does not answer counts as silent
COMMAND_S = 10.0  # that a command from the page may take
REQUEST_S = 10.0  # that a browser may take for its request
MAX_REQUEST = 64 << 10  # bytes
MAX_UNREAD = 1 << 20  # bytes of news that a browser has not read
MAX_PAGES = 32  # browser pages that are fed at the same time
FAILING = 0.5  # of the messages to an acceptor that fails on purpose are lost
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUN_S, RUN_RATE, MAX_RUN_S = 20, 5, 3600  # a workload: seconds, and operations per second
HEADERS = (
    "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n"
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
)
HELP = (
    "commands: put KEY VALUE, get KEY, delete KEY, incr KEY [N], run [SECONDS [PER SECOND]], trace on|off, "
    "explain KEY"
)


class Halt(Exception):
    """The program ends: a line that says why, and its exit status."""

    def __init__(self, reason: object, code: int) -> None:
        super().__init__(str(reason))
        self.code = code


class Wrong(Exception):
    """What a page asks for cannot be done; the message is one line."""


class Tool:
    """One of our programs as a process, away from the terminal's Ctrl-C; its output is kept."""

    def __init__(self, *words: object) -> None:
        self.words = [sys.executable, *map(str, words)]
        self.process: asyncio.subprocess.Process | None = None

    async def run(self) -> tuple[int, str]:
        """Run it to its end. Cancelled, it is interrupted, and has then tidied up."""
        self.process = await asyncio.create_subprocess_exec(
            *self.words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = await self.process.communicate()
        except asyncio.CancelledError:
            self.interrupt()
            await self.process.wait()
            raise
        return self.process.returncode or 0, output.decode(errors="replace").strip()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        with contextlib.suppress(ProcessLookupError):
            if self.process and self.process.returncode is None:
                self.process.send_signal(signal.SIGINT)


class Machine:
    """The nodes of a cluster on this machine, and what has been done to them from the page."""

    def __init__(self, file: Path, data: str | None) -> None:
        self.file = file
        self.data = ["--data", data] if data else []
        self.settings: Cluster = load(file)
        self.started = False  # by us
        self.paused: set[int] = set()
        self.killed: set[int] = set()
        self.faulty = False  # whether we have written the file of faults

    @property
    def local(self) -> bool:
        """Whether all nodes are on this machine."""
        return all(is_loopback(node.host) for node in self.settings.nodes)

    async def control(self, command: str, node: int | None = None) -> str:
        """Do as scripts/cluster.sh; return what it said."""
        words = [command, *([] if node is None else [node]), "--cluster", self.file, *self.data]
        code, text = await Tool(ROOT / "deploy" / "local.py", *words).run()
        if code:
            raise Wrong(text.replace("cluster.sh: ", "") or f"{command} failed")
        return text

    async def start(self) -> None:
        """Start the nodes, unless one of them answers."""
        async with AsyncClient(self.settings, timeout=SILENT_S) as client:
            try:
                await client.connect(SILENT_S)
                return
            except WrongCluster as error:
                raise Halt(error, USAGE) from None
            except NoNodeReachable as error:
                if not self.local:
                    raise Halt(error, UNREACHABLE) from None
        remark(f"starting {len(self.settings.nodes)} nodes")
        self.started = True
        try:
            remark(await self.control("start"))
        except Wrong as error:
            raise Halt(error, NEGATIVE) from None

    async def stop(self) -> None:
        """Leave nothing behind that was begun here."""
        if self.faulty and self.settings.faults:
            Path(self.settings.faults).unlink(missing_ok=True)
        if self.started:
            remark("stopping the nodes that were started here")
            try:
                await self.control("stop")
            except Wrong as error:
                say(f"{program.name()}: {escaped(str(error))}")
            return
        for node in self.paused:
            with contextlib.suppress(Wrong):
                await self.control("resume", node)
        if self.killed:
            say(f"nodes that were killed here and not started again: {', '.join(map(str, self.killed))}")

    async def signal(self, asked: dict[str, Any]) -> str:
        """Kill, start, pause or resume a node."""
        command, node = asked["do"], self.node(asked.get("node"))
        await self.control(command, node)
        self.killed.discard(node)
        self.paused.discard(node)
        if command in ("kill", "pause"):
            (self.killed if command == "kill" else self.paused).add(node)
        return f"node {node}: {command} done"

    def faults(self, asked: dict[str, Any]) -> str:
        """Cut or heal a link, let an acceptor fail, or end all that."""
        path = self.settings.faults
        if path is None:
            raise Wrong(f'{self.file} names no file of faults: add "faults": "faults.json", and restart')
        now = load_faults(path)
        cut, acceptors = {tuple(sorted(link)) for link in now.cut}, dict(now.acceptors)
        match asked["do"]:
            case "cut" | "heal" as do:
                one, other = link = tuple(sorted((self.node(asked.get("node")), self.node(asked.get("to")))))
                if one == other:
                    raise Wrong("a link has two ends")
                cut = cut | {link} if do == "cut" else cut - {link}
                told = f"link {one}-{other}: {do} done"
            case "fail" | "mend" as do:
                node = self.node(asked.get("node"))
                acceptors.pop(str(node), None)
                if do == "fail":
                    acceptors[str(node)] = FAILING
                what = f"loses {FAILING:.0%} of its messages" if do == "fail" else "works"
                told = f"acceptor {node}: {what}"
            case _:
                cut, acceptors, told = set(), {}, "all links and acceptors work"
        self.faulty = True
        new = Path(f"{path}.new")
        new.write_text(json.dumps({"cut": sorted(cut), "acceptors": acceptors}))
        new.replace(path)
        return told

    def node(self, value: object) -> int:
        """A node's number, as a page has sent it."""
        if value not in [node.id for node in self.settings.nodes]:
            raise Wrong("there is no such node")
        return int(str(value))


class Watch:
    """Asks all nodes how they are, as long as somebody looks, and tells all who look."""

    def __init__(self, machine: Machine, demo: bool) -> None:
        self.machine = machine
        self.client = AsyncClient(machine.settings, timeout=SILENT_S, attempt_timeout=SILENT_S)
        self.views = {node.id: View(node, None, None) for node in self.client.nodes}
        self.times: dict[int | None, float] = {}  # when each has answered
        self.lookers: set[asyncio.StreamWriter] = set()
        self.wanted = asyncio.Event()  # somebody looks
        self.due = asyncio.Event()  # something was done: look at once
        self.running = 0  # workloads
        settings = machine.settings
        self.about = {
            "name": settings.name, "way": settings.proposing, "nodes": [node.id for node in settings.nodes],
            "demo": demo, "faults": demo and settings.faults is not None, "help": HELP,
        }  # fmt: skip

    async def run(self) -> None:
        """Go on until cancelled."""
        asking: dict[int | None, asyncio.Task[None]] = {}
        while True:
            await self.wanted.wait()
            self.due.clear()
            for node in self.client.nodes:
                if node.id not in asking or asking[node.id].done():
                    asking[node.id] = asyncio.create_task(self._ask(node))
            await asyncio.wait(asking.values(), timeout=QUICK_S)
            self._tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.due.wait(), PERIOD_S)

    async def _ask(self, node: Any) -> None:
        try:
            self.views[node.id] = View(node, await self.client.status(node.id), None)
        except ClientError as error:
            self.views[node.id] = View(node, None, error)
        self.times[node.id] = time.monotonic()

    def _tell(self) -> None:
        views = [view for view in self.views.values() if view.status or view.error]
        nodes = [
            {"id": view.node.id, "at": self.times[view.node.id], **row}
            for view, row in zip(views, as_data(views), strict=True)
        ]
        news: dict[str, Any] = {"nodes": nodes, "running": self.running}
        if self.about["faults"]:
            with contextlib.suppress(ClusterError):
                faults = load_faults(self.machine.settings.faults or "")
                news |= {"cut": faults.cut, "acceptors": faults.acceptors}
        line = event("news", news)
        for looker in self.lookers:
            if looker.transport.get_write_buffer_size() < MAX_UNREAD:
                looker.write(line)

    async def show(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Feed one page until it is closed."""
        if len(self.lookers) >= MAX_PAGES:
            raise Wrong("too many pages are open")
        writer.write(head("200 OK", "text/event-stream", "") + event("about", self.about))
        self.lookers.add(writer)
        self.wanted.set()
        self.due.set()
        try:
            await reader.read()  # a page says nothing more, and hangs up
        finally:
            self.lookers.discard(writer)
            if not self.lookers:
                self.wanted.clear()


def event(name: str, value: Any) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


class Desk:
    """What pages ask for: commands, and what is done to the nodes."""

    def __init__(self, machine: Machine, watch: Watch, directory: Path) -> None:
        self.machine = machine
        self.watch = watch
        self.directory = directory  # for pages
        self.numbers = itertools.count(1)
        self.pages: dict[str, Path] = {}
        self.runs: set[Tool] = set()
        anybody: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "command": self._command, "stop": self._stop, "scenarios": self._scenarios,
            "scenario": self._scenario,
        }  # fmt: skip
        on_nodes = dict.fromkeys(("kill", "start", "pause", "resume"), machine.signal)
        on_faults = dict.fromkeys(("cut", "heal", "fail", "mend", "calm"), self._faults)
        self.actions = {**anybody, **(on_nodes | on_faults if watch.about["demo"] else {})}

    async def do(self, asked: Any) -> dict[str, Any]:
        """Do what a page asks for; return what it shows."""
        try:
            action = self.actions.get(str(asked.get("do"))) if isinstance(asked, dict) else None
            if action is None:
                raise Wrong("nothing that can be done here")
            done = await action(asked)
        except (Wrong, ClientError, ClusterError, OSError) as error:
            return {"ok": False, "text": escaped(str(error), keep="\n")}
        finally:
            self.watch.due.set()
        return {"ok": True, **(done if isinstance(done, dict) else {"text": escaped(done, keep="\n")})}

    async def _faults(self, asked: dict[str, Any]) -> str:
        return self.machine.faults(asked)

    # ------------------------------------------------------------------------------------------- commands

    async def _command(self, asked: dict[str, Any]) -> Any:
        try:
            words = shlex.split(str(asked.get("text", "")))
        except ValueError as error:
            raise Wrong(error) from None
        match words:
            case ["run", *more]:
                return await self._run(more)
            case ["trace", "on" | "off" as what]:
                return await self._client("trace", what)
            case ["explain", key]:
                path = self._new_page()
                await self._client("explain", "--html", path, "--", key)
                return self._page(path, f"how the last value of {key!r} was chosen")
        node = asked.get("node")
        nodes = [known.id for known in self.machine.settings.nodes]
        first = 0 if node is None else nodes.index(self.machine.node(node))
        began = time.monotonic()
        async with AsyncClient(self.machine.settings, timeout=COMMAND_S, first=first) as client:
            match words:
                case ["put", key, value]:
                    await client.put(key, value)
                    told = "ok"
                case ["get", key]:
                    found = await client.get(key)
                    told = "not found" if found is None else repr(found)
                case ["delete", key]:
                    told = "ok" if await client.delete(key) else "not found"
                case ["incr", key, *delta] if len(delta) < 2:
                    told = str(await client.increment(key, _whole(*delta)))
                case _:
                    raise Wrong(HELP)
        return f"{told} ({(time.monotonic() - began) * 1000:.1f} ms)"

    async def _client(self, *words: object) -> str:
        """Do as client.py with these words."""
        code, text = await Tool(ROOT / "client.py", "--cluster", self.machine.file, *words).run()
        if code:
            raise Wrong(text.removeprefix("client.py: "))
        return text

    async def _run(self, more: list[str]) -> str:
        """Run the project's workload: for how long, and how many per second (0: as many as it can)."""
        seconds, rate = [*map(_whole, more), *(RUN_S, RUN_RATE)[len(more) :]][:2]
        if len(more) > 2 or not 0 < seconds <= MAX_RUN_S or rate < 0:
            raise Wrong(
                f"run [SECONDS [PER SECOND]], for at most {MAX_RUN_S} s; 0 per second: as many as it can"
            )
        speed = ["--rate", rate] if rate else ["--in-flight", 8]
        words = ["run", ROOT / "workload.csv", "--cluster", self.machine.file, "--duration", seconds, *speed]
        tool = Tool(ROOT / "client.py", *words)
        self.runs.add(tool)
        self.watch.running += 1
        try:
            _, text = await tool.run()
        finally:
            self.runs.discard(tool)
            self.watch.running -= 1
        return text or "interrupted"

    def stop(self) -> None:
        """Interrupt the workloads."""
        for tool in self.runs:
            tool.interrupt()

    async def _stop(self, asked: dict[str, Any]) -> str:
        self.stop()
        return "stopped" if self.runs else "no workload runs"

    # -------------------------------------------------------------------------------------------- pages

    async def _scenarios(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The names of the scenarios, and what they are about."""
        _, text = await Tool(ROOT / "scripts" / "trace.py", "--list").run()
        lines = [line.partition(": ") for line in text.splitlines() if not line.startswith(" ")]
        return {"text": "", "scenarios": [[name, title] for name, _, title in lines]}

    async def _scenario(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Make the page of a scenario."""
        name = str(asked.get("name"))
        path = self._new_page()
        code, text = await Tool(ROOT / "scripts" / "trace.py", "--html", path, "--", name).run()
        if code:
            raise Wrong(text.splitlines()[-1])
        return self._page(path, f"the scenario {name}")

    def _new_page(self) -> Path:
        return self.directory / f"{next(self.numbers)}.html"

    def _page(self, path: Path, what: str) -> dict[str, Any]:
        """Have a page that was made be opened."""
        self.pages[path.stem] = path
        return {"text": what, "link": f"/page/{path.stem}"}


def _whole(text: str = "1") -> int:
    try:
        return int(text)
    except ValueError:
        raise Wrong(f"{text!r} is not a whole number") from None


def head(status: str, kind: str, more: str) -> bytes:
    """The beginning of an answer over HTTP."""
    kind = f"Content-Type: {kind}; charset=utf-8\r\n"
    return f"HTTP/1.1 {status}\r\n{kind}{HEADERS}{more}Connection: close\r\n\r\n".encode()


class Site:
    """The page over HTTP, on loopback, for whoever has the token."""

    def __init__(self, watch: Watch, desk: Desk) -> None:
        self.watch = watch
        self.desk = desk
        self.token = secrets.token_urlsafe(24)
        self.hosts: set[str] = set()

    async def listen(self, port: int) -> str:
        """Begin to serve; return the link."""
        try:
            server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=MAX_REQUEST)
        except OSError as error:
            raise Halt(f"--port {port}: {error.strerror}", USAGE) from None
        port = server.sockets[0].getsockname()[1]
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        return f"http://127.0.0.1:{port}/#{self.token}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request. Whoever dawdles or sends something else is hung up on."""
        hung_up = (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with contextlib.suppress(*hung_up):
            try:
                async with asyncio.timeout(REQUEST_S):
                    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    method, target, _ = first.split(" ")
                    headers = {
                        name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
                    }
                    body = await reader.readexactly(min(int(headers.get("content-length", 0)), MAX_REQUEST))
                await self._answer(method, urlsplit(target), headers, body, reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            finally:
                writer.transport.abort()

    def refuses(self, method: str, url: Any, headers: dict[str, str]) -> str | None:
        """Why this request is not ours to answer, or None.

        A page from elsewhere can send one, but it has no token, and its origin is another one; a name that
        leads here in somebody else's name server is not among the hosts.
        """
        if headers.get("host") not in self.hosts:
            return "another host was asked for"
        origin = headers.get("origin")
        if origin is None and method == "POST":
            return "a page says where it comes from"
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return "a page from elsewhere"
        token = headers.get("x-token") or parse_qs(url.query).get("token", [""])[0]
        if url.path != "/" and not hmac.compare_digest(token.encode(), self.token.encode()):
            return "the token is missing: use the link that dashboard.py has printed"
        return None

    async def _answer(self, method: str, url: Any, headers: dict[str, str], body: bytes,
                      reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # fmt: skip
        def send(status: str, text: bytes, kind: str = "text/plain") -> None:
            writer.write(head(status, kind, f"Content-Length: {len(text)}\r\n") + text)

        refusal = self.refuses(method, url, headers)
        page = self.desk.pages.get(url.path.removeprefix("/page/"))
        if refusal is not None:
            send("403 Forbidden", f"{refusal}\n".encode())
        elif (method, url.path) == ("POST", "/do"):
            done = await self.desk.do(json.loads(body))
            send("200 OK", json.dumps(done).encode(), "application/json")
        elif (method, url.path) == ("GET", "/events"):
            await self.watch.show(reader, writer)
        elif (method, url.path) == ("GET", "/"):
            send("200 OK", PAGE.read_bytes(), "text/html")
        elif method == "GET" and page is not None:
            send("200 OK", page.read_bytes(), "text/html")
        else:
            send("404 Not Found", b"nothing is here\n")


# ---------------------------------------------------------------------------------------------------- program


async def own_cluster(directory: Path, way: str) -> Path:
    """Make the file of five nodes, whose faults can be switched."""
    words = ["--name", "demo", "--set", 'faults="faults.json"', "--set", f"proposing={json.dumps(way)}"]
    code, text = await Tool(ROOT / "scripts" / "make_cluster.py", *words).run()
    if code:
        raise Halt(text, NEGATIVE)
    file = directory / "cluster.json"
    file.write_text(text)
    return file


async def serve(options: argparse.Namespace, directory: Path) -> None:
    """Until cancelled: then all that was started here is stopped."""
    file = Path(options.cluster or await own_cluster(directory, options.proposing or WAYS[0])).absolute()
    machine = Machine(file, options.data)
    if options.demo and not machine.local:
        raise Halt(f"--demo: the nodes of {file} are not on this machine", USAGE)
    watch = Watch(machine, options.demo)
    desk = Desk(machine, watch, directory)
    try:
        await machine.start()
        print(await Site(watch, desk).listen(options.port), flush=True)
        remark("open this link in a browser; Ctrl-C ends it")
        await watch.run()
    finally:
        desk.stop()
        await machine.stop()


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit status."""
    directory = Path(tempfile.mkdtemp(prefix="dashboard-"))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(serve(options, directory))

        def stop() -> None:
            for number in SIGNALS:
                loop.add_signal_handler(number, lambda: None)  # it is tidying up
            task.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, stop)

        async def end() -> None:
            await asyncio.wait([task])

        try:
            runner.run(end())
            task.result()
        except asyncio.CancelledError:
            return INTERRUPTED
        except (Halt, ClusterError) as error:
            lines = escaped(str(error), keep="\n").splitlines()
            say("\n".join(f"{program.name()}: {line}" for line in lines))
            return error.code if isinstance(error, Halt) else USAGE
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--cluster", metavar="FILE", help="the cluster (default: cluster.json; --demo: its own)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="data directories (default: what the cluster's file says)"
    )
    parser.add_argument(
        "--demo", action="store_true", help="buttons that kill and pause nodes, and cut links"
    )
    parser.add_argument("--proposing", choices=WAYS, help="with --demo's own cluster (default: own-logs)")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="of the page (default: any that is free)"
    )
    options = parser.parse_args(arguments)
    if options.proposing and (options.cluster or not options.demo):
        parser.error("--proposing is for the cluster that --demo makes")
    if options.data and not options.cluster and options.demo:
        parser.error("--data is for a cluster of yours: --cluster FILE")
    if options.cluster is None and not options.demo:
        options.cluster = ROOT / "cluster.json"
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
