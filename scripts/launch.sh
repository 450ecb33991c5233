#!/usr/bin/env bash
# Start and stop a cluster on hosts that are reached over ssh; see scripts/launch.sh --help.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
if [ ! -x "$python" ]; then
    "$project/scripts/setup.sh"
    python=$project/.venv/bin/python
fi
exec "$python" "$project/deploy/launch.py" "$@"
