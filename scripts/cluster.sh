#!/usr/bin/env bash
# Control the nodes of a cluster on this machine; see scripts/cluster.sh --help.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || { echo "cluster.sh: no python3; scripts/demo.sh sets one up" >&2; exit 2; }
exec "$python" "$project/deploy/local.py" "$@"
