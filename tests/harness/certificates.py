"""Authorities and certificates for tests, made by the openssl command."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.harness.processes import finish

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
CONFIG = """
[ca]
default_ca = ours
[ours]
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
default_md = sha256
policy = any
unique_subject = no
email_in_dn = no
[any]
commonName = supplied
"""


class Authority:
    """Makes certificates, in a directory with the names that cluster.json has for them."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        if not shutil.which("openssl"):
            pytest.skip("the openssl command is missing")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.name = name
        self.own = directory / f"{name}.files"
        self.own.mkdir()
        (self.own / "index.txt").touch()
        (self.own / "serial").write_text("01\n")
        (self.own / "config").write_text(CONFIG.format(directory=self.own))
        self._openssl("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                      "-out", f"{name}.pem")  # fmt: skip

    def make(self, file: str, *names: str, days: tuple[float, float] = (-1, 365), cn: str = "") -> None:
        """Make FILE.pem and FILE.key for 127.0.0.1 and these URIs, valid between so many days from now."""
        start, end = ((datetime.now(UTC) + timedelta(day)).strftime("%Y%m%d%H%M%SZ") for day in days)
        names = ("IP:127.0.0.1", *(f"URI:{name}" for name in names))
        (self.own / "extensions").write_text(f"subjectAltName={','.join(names)}\n")
        self._openssl("req", *NEW_KEY, "-subj", f"/CN={cn or file}", "-keyout", f"{file}.key",
                      "-out", f"{file}.csr")  # fmt: skip
        self._openssl("ca", "-batch", "-notext", "-config", self.own / "config", "-cert", f"{self.name}.pem",
                      "-keyfile", f"{self.name}.key", "-startdate", start, "-enddate", end, "-extfile",
                      self.own / "extensions", "-in", f"{file}.csr", "-out", f"{file}.pem")  # fmt: skip

    def cluster(self, name: str = "test", nodes: int = 3) -> dict[str, str]:
        """Make all certificates of a cluster; return what its cluster.json says of them."""
        for node in range(1, nodes + 1):
            self.make(f"node-{node}", f"urn:paxoskv:{name}:node:{node}")
        for role in ("reader", "writer", "admin"):
            self.make(f"client-{role}", f"urn:paxoskv:{name}:client:{role}")
        for suffix in ("pem", "key"):
            (self.directory / f"client.{suffix}").symlink_to(f"client-admin.{suffix}")
        return self.paths("{name}")

    def paths(self, file: str) -> dict[str, str]:
        """What cluster.json says of one who shows this certificate."""
        files = {"certificate": f"{file}.pem", "key": f"{file}.key", "authority": f"{self.name}.pem"}
        return {field: str(self.directory / file) for field, file in files.items()}

    def _openssl(self, *words: str | Path) -> None:
        done = finish(["openssl", *words], cwd=self.directory)
        assert done.returncode == 0, done.stderr
