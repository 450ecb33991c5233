#!/usr/bin/env bash
# Measure the cluster beside the single server and write tables, charts and one report; --help says more.
# The nodes run compiled (setup.sh --fast) where there is a C compiler; MULTIPAXOS_PLAIN=1 asks for the plain text.
# usage: scripts/bench.sh [OPTION ...] | compare A B | report DIR
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fast=--fast
case ${1:-} in compare | report | -h | --help) fast='' ;; esac
if [ -n "${MULTIPAXOS_PLAIN:-}" ] || ! command -v cc >/dev/null; then fast=''; fi
"$project/scripts/setup.sh" --dev $fast
exec "$project/.venv/bin/python" "$project/scripts/bench.py" "$@"
