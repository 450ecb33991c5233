#!/usr/bin/env bash
# Measure the cluster beside the single server and write tables, charts and one report; --help says more.
# usage: scripts/bench.sh [OPTION ...] | compare A B | report DIR
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$project/scripts/setup.sh" --dev
exec "$project/.venv/bin/python" "$project/scripts/bench.py" "$@"
