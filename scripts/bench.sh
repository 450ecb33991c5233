#!/usr/bin/env bash
# Measure the cluster beside the single server and write tables, charts and one report; --help says more.
# The nodes run compiled (setup.sh --fast) where there is a C compiler; PAXOSKV_INTERPRETED=1 asks for the interpreted modules.
# usage: scripts/bench.sh [OPTION ...] | compare A B | report DIR
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fast=--fast
case ${1:-} in compare | report) fast='' ;; esac
case " $* " in *' -h '* | *' --help '*) exec "$project/bench/run.py" "$@" ;; esac
if [ -n "${PAXOSKV_INTERPRETED:-}" ] || ! command -v cc >/dev/null; then fast=''; fi
python=$project/.venv/bin/python
"$project/scripts/setup.sh" --dev
# Before anything is compiled: are these its options?
PYTHONPATH=$project "$python" -c 'import sys; from bench.run import parse; parse(sys.argv[1:])' "$@"
if [ -n "$fast" ]; then "$project/scripts/setup.sh" --dev --fast; fi
exec "$python" "$project/bench/run.py" "$@"
