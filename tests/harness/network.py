"""Six machines in one: network namespaces with an address of their own each, five of them with an sshd.

    with Network(tmp_path) as network:
        network.finish(CLIENT, ["ssh", "-F", network.ssh_config, network.address(3), "true"])
        with network.cut_off(3):
            ...

Number 6 is the machine of the one who launches and of the clients. A seventh namespace is the switch between
them, so that no packet of a test is ever seen outside, and nothing outside is changed. The file system is
common to all: the "hosts" differ in the directory that cluster.json names for each. Needs root, `ip` and
OpenSSH's server; `missing()` says what is not there.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.processes import die_with_parent, eventually, finish

HOSTS = (1, 2, 3, 4, 5)
CLIENT = 6
SWITCH = "switch"
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PREFIX = "10.0.0."  # as in docs/operations.md: its commands are run here as they stand
LOG_LINES = 20
CLONE_NEWNET = 0x40000000

SSHD_CONFIG = """\
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel ERROR
"""
SSH_CONFIG = """\
Host *
    IdentityFile {directory}/key
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    KexAlgorithms curve25519-sha256
"""


def missing(ssh: bool = True) -> str | None:
    """Why there can be no such network here; None if it can be. ssh=False: none with keys and sshds."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    of_ssh = (("ssh", "openssh-client"), (SSHD, "openssh-server"))
    for program, package in (("ip", "iproute2"), *(of_ssh if ssh else ())):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install {package})"
    name = f"probe-{os.getpid()}"
    done = finish(["ip", "netns", "add", name])
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    finish(["ip", "netns", "del", name])
    return None


def enter(namespace: int) -> None:
    """Move this thread to another network namespace (setns(2), which Python has from 3.12 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """The six machines and the switch; all are gone when the block is left."""

    def __init__(self, directory: Path, ssh: bool = True) -> None:
        """ssh=False: without keys and sshds."""
        self.directory = directory
        self.ssh = ssh
        self.ssh_config = directory / "ssh_config"
        self.servers: list[subprocess.Popen[bytes]] = []
        self.names = {which: f"kv{os.getpid()}-{which}" for which in (*HOSTS, CLIENT, SWITCH)}

    def __enter__(self) -> Self:
        try:
            self._connect()
            if self.ssh:
                self._serve_ssh()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
        for name in self.names.values():
            pids = finish(["ip", "netns", "pids", name]).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            finish(["ip", "netns", "del", name])

    # ---- what it is made of

    def _ip(self, where: int | str, *words: str) -> None:
        done = finish(["ip", "-n", self.names[where], *words])  # type: ignore[index]
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def _connect(self) -> None:
        for name in self.names.values():
            finish(["ip", "netns", "add", name]).check_returncode()
        self._ip(SWITCH, "link", "add", "bridge", "type", "bridge")
        self._ip(SWITCH, "link", "set", "bridge", "up")
        for number in (*HOSTS, CLIENT):
            port = f"port{number}"
            ends = ["eth0", "type", "veth", "peer", "name", port, "netns", self.names[SWITCH]]
            self._ip(number, "link", "add", *ends)
            self._ip(SWITCH, "link", "set", port, "master", "bridge", "up")
            self._ip(number, "link", "set", "lo", "up")
            self._ip(number, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            self._ip(number, "link", "set", "eth0", "up")

    def _keys(self) -> None:
        for name in ("key", "other_key", "host_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.directory / name]
            finish(words).check_returncode()
        (self.directory / "authorized_keys").write_text((self.directory / "key.pub").read_text())
        host_key = (self.directory / "host_key.pub").read_text()
        (self.directory / "known_hosts").write_text(f"{PREFIX}* {host_key}")
        self.ssh_config.write_text(SSH_CONFIG.format(directory=self.directory))

    def _serve_ssh(self) -> None:
        self._keys()
        for number in HOSTS:
            self._start_sshd(number)
        for number in HOSTS:
            ssh = ["ssh", "-F", self.ssh_config, self.address(number), "true"]
            eventually(lambda ssh=ssh: self.finish(CLIENT, ssh).returncode == 0, f"sshd {number} answers")

    def _start_sshd(self, number: int) -> None:
        config = self.directory / f"sshd-{number}.conf"
        config.write_text(SSHD_CONFIG.format(address=self.address(number), directory=self.directory))
        # sshd locks its unprivileged half into /run/sshd: in a /run of its own, for `ip netns exec` lets a
        # mount be seen by this process and its children only.
        run = f"mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec {SSHD} -D -e -f {config}"
        command = self.at(number, ["sh", "-c", run])
        with (self.directory / f"sshd-{number}.log").open("ab") as log:
            self.servers.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, preexec_fn=die_with_parent)
            )

    # ---- what is done with it

    def address(self, number: int) -> str:
        return f"{PREFIX}{number}"

    def at(self, number: int, command: Sequence[str | Path]) -> list[str]:
        """The command that runs this one on that machine."""
        return ["ip", "netns", "exec", self.names[number], *map(str, command)]

    def finish(self, number: int, command: Sequence[str | Path], *rest: Any, **options: Any) -> Any:
        """Run a program on that machine to its end."""
        return finish(self.at(number, command), *rest, **options)

    def pids(self) -> list[int]:
        """What runs on the five hosts, beside the sshd of each and those who are logged in."""
        sshd = {server.pid for server in self.servers}
        found = []
        for number in HOSTS:
            for pid in map(int, finish(["ip", "netns", "pids", self.names[number]]).stdout.split()):
                with contextlib.suppress(OSError):
                    program = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if pid not in sshd and program and not program.startswith(b"sshd: "):
                        found.append(pid)
        return found

    @contextlib.contextmanager
    def cut_off(self, number: int) -> Iterator[None]:
        """Blackhole routes, from this machine to all others and back, as long as the block lasts."""
        with self.parted({number}, {*HOSTS, CLIENT} - {number}):
            yield

    @contextlib.contextmanager
    def parted(self, some: Collection[int], others: Collection[int]) -> Iterator[None]:
        """No packet passes between some machines and others, as long as the block lasts."""
        routes = [(one, other) for one in some for other in others]
        routes += [(other, one) for one, other in routes]
        for here, there in routes:
            self._ip(here, "route", "add", "blackhole", self.address(there))
        try:
            yield
        finally:
            for here, there in routes:
                self._ip(here, "route", "del", "blackhole", self.address(there))

    @contextlib.contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """This thread, and what it starts, is on that machine, as long as the block lasts."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.names[number]}", os.O_RDONLY)
        try:
            enter(there)
            yield
        finally:
            enter(here)
            os.close(here)
            os.close(there)

    def cluster_file(self, directory: Path, **settings: Any) -> Path:
        """A cluster of the five hosts, each with a directory of its own. `n3={...}`: fields of node 3."""
        nodes = [
            {"id": n, "host": self.address(n), "port": 7001, "directory": str(directory / f"host-{n}")}
            | settings.pop(f"n{n}", {})
            for n in HOSTS
        ]
        path = directory / "cluster.json"
        directory.mkdir(parents=True, exist_ok=True)
        python = {"python": base_python()}
        settings["ssh"] = python | settings.get("ssh", {})
        if "tls" not in settings:
            settings["secret"] = "launched.secret"
            (directory / "launched.secret").touch(0o600)
            (directory / "launched.secret").write_text(os.urandom(32).hex())
        path.write_text(json.dumps({"name": "launched", "nodes": nodes} | settings, indent=2))
        return path


def base_python() -> str:
    """The Python that the environment of the tests was made with: one without the project's packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str((Path(sys.base_prefix) / "bin" / version).resolve())
