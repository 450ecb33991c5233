#!/usr/bin/env python3
"""What a container runs: a node, or the question whether it is ready, or the client.

    entrypoint.py node             the node of this container
    entrypoint.py ready            exit status 0 if that node takes commands
    entrypoint.py client WORD ...  client.py with these words

PAXOSKV_ID says which node it is, or else the end of the host's name, counted from 0 (paxoskv-0 is node 1).
The cluster's file is PAXOSKV_CLUSTER. The secret that is mounted as PAXOSKV_SECRET is copied to a file that
only the node may read, beside a copy of the cluster's file, because mounted files often have other modes and
owners; both copies are in PAXOSKV_RUN (default: /tmp/paxoskv). The node's data is in PAXOSKV_DATA (/data),
and PAXOSKV_LOG is the format of its log (json).
A container that begins as root, because only root may read what is mounted, goes on as the image's user.

PAXOSKV_START says what is done if there is no data. Absent: the node ends, because somebody must notice that
a volume is gone. `init`: data is made, once in the life of the cluster. `rejoin`: as after a lost disk.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, NoReturn

PROJECT: Final = Path(__file__).resolve().parent.parent
STARTS: Final = {"init": ["--init"], "rejoin": ["--rejoin"], "": []}
USER: Final = 10001  # of the image, see Dockerfile
READY_S: Final = 2.0  # seconds that a node may take to say whether it is ready


def fail(reason: str) -> NoReturn:
    """End with one line, as server.py does where the settings are wrong."""
    print(f"entrypoint.py: {reason}", file=sys.stderr)
    sys.exit(2)


def own_id() -> int:
    """Which node this container is."""
    given = os.environ.get("PAXOSKV_ID")
    ordinal = os.environ.get("HOSTNAME", os.uname().nodename).partition(".")[0].rpartition("-")[2]
    if given is None and ordinal.isdecimal():
        return int(ordinal) + 1
    if given is None or not given.isdecimal():
        fail("PAXOSKV_ID: it is no number, and the host's name does not end in one")
    return int(given)


def prepared() -> Path:
    """Return the cluster's file, with the secret beside it if one is mounted."""
    file = Path(os.environ.get("PAXOSKV_CLUSTER", "cluster.json"))
    secret = os.environ.get("PAXOSKV_SECRET")
    if secret is None:
        return file
    own = Path(os.environ.get("PAXOSKV_RUN", "/tmp/paxoskv"))
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = json.loads(file.read_text())
        settings["secret"] = "secret"
        (own / "secret").unlink(missing_ok=True)
        (own / "secret").touch(0o600)
        (own / "secret").write_bytes(Path(secret).read_bytes())
        (own / file.name).write_text(json.dumps(settings))
        if os.geteuid() == 0:
            for path in (own, own / "secret", own / file.name):
                os.chown(path, USER, USER)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except (ValueError, TypeError) as error:
        fail(f"{file}: {error}")
    return own / file.name


def run(program: str, *words: str) -> NoReturn:
    """Go on as another program: signals reach it, and its exit status is the container's."""
    os.execv(sys.executable, [sys.executable, str(PROJECT / program), *words])


def node() -> NoReturn:
    """Run the node of this container."""
    data, start = Path(os.environ.get("PAXOSKV_DATA", "/data")), os.environ.get("PAXOSKV_START", "")
    if start not in STARTS:
        fail(f"PAXOSKV_START: {start!r} is none of init, rejoin")
    number, file = own_id(), prepared()
    made = (data / f"node-{number}" / "identity.json").exists()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    log = os.environ.get("PAXOSKV_LOG", "json")
    options = ["--id", str(number), "--cluster", str(file), "--data", str(data), "--log-format", log]
    run("server.py", *options, *([] if made else STARTS[start]))


def ready() -> int:
    """Ask the node of this container whether it takes commands."""
    members = json.loads(Path(os.environ.get("PAXOSKV_CLUSTER", "cluster.json")).read_text())["nodes"]
    own = next(member for member in members if member["id"] == own_id())
    try:
        with urllib.request.urlopen(f"http://{own['host']}:{own['metrics_port']}/readyz", timeout=READY_S):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(f"entrypoint.py: {error}", file=sys.stderr)
        return 1


def main() -> int:
    words = sys.argv[1:]
    if words == ["node"]:
        node()
    if words == ["ready"]:
        return ready()
    if words[:1] == ["client"]:
        run("client.py", *words[1:])
    asked = words[:1] in (["-h"], ["--help"])
    print(
        f"usage: entrypoint.py node | ready | client WORD ...\n\n{__doc__}",
        file=[sys.stderr, sys.stdout][asked],
    )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
