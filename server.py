"""One node of the cluster, or the single, unreplicated server that it is compared with.

    python server.py --id 1                    one of the nodes in cluster.json
    python server.py --standalone              the same service without Paxos

The program is paxoskv/node/main.py; this is its door.
"""

import importlib
import sys

from paxoskv import compiled, program


def main() -> int:
    """Run a node until it is stopped; returns the exit code."""
    program.begin(*program.PACKAGES)
    compiled.use()  # before the modules that may be compiled are imported
    code: int = importlib.import_module("paxoskv.node.main").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
