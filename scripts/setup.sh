#!/usr/bin/env bash
# Make .venv with the pinned packages, unless it is there already.
# usage: scripts/setup.sh [--dev]      (--dev: the tools for tests and checks as well; PYTHON=... makes it with another Python)
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$project/requirements.txt
base=${PYTHON:-python3}
case ${1:-} in
'') ;;
--dev) requirements=$project/requirements-dev.txt ;;
*) sed -n 2,3p "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

# What was installed is remembered by the checksum of the lists, so that a second run costs nothing.
lists=$(cat "$project"/requirements*.txt | sha256sum | cut -d' ' -f1)
if grep -qx "$lists ${requirements##*/}" "$project/.venv/installed" 2>/dev/null; then exit 0; fi

"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "setup.sh: Python 3.11 or later is needed (Debian: apt-get install python3 python3-venv)" >&2
    exit 2
}
if [ ! -x "$project/.venv/bin/python" ]; then
    "$base" -m venv "$project/.venv" || {
        echo "setup.sh: $base cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2
        exit 2
    }
fi
echo "installing the packages of ${requirements##*/} into .venv ..." >&2
"$project/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
"$project/.venv/bin/python" -c 'from thrift.protocol import fastbinary' 2>/dev/null || {
    echo "setup.sh: thrift was built without its C extension (Debian: apt-get install gcc python3-dev, then remove .venv)" >&2
    exit 2
}
printf '%s\n' "$lists requirements.txt" "$lists ${requirements##*/}" >"$project/.venv/installed"
