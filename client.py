"""The client's command line; `python client.py --help` tells the commands.

The library's names are in paxoskv:

    from paxoskv import Client, UnknownOutcome, load

    with Client(load("cluster.json")) as client:
        client.put("key", "value")

The program is paxoskv/client/cli.py; this is its door. PYTHON_ARGCOMPLETE_OK: bash may complete its words.
"""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        import importlib

        from paxoskv import compiled, program

        program.begin(*program.PACKAGES)
        compiled.use()  # before the modules that may be compiled are imported
        code: int = importlib.import_module("paxoskv.client").main()
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
