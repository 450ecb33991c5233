#!/usr/bin/env bash
# Five nodes on this machine agree on a workload: set up, start, run, compare the five stores, stop.
# usage: scripts/demo.sh [FILE.csv] [OPTION of client.py run ...]      (default: the project's own workload.csv)
# usage: scripts/demo.sh --page [OPTION of dashboard.py ...]      five nodes on a live page, until Ctrl-C
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; }
case ${1:-} in
-h | --help) usage; exit 0 ;;
--page)
    "$project/scripts/setup.sh"
    exec "$project/.venv/bin/python" "$project/scripts/dashboard.py" --demo "${@:2}"
    ;;
'' | -*) workload=$project/workload.csv ;;
*) workload=$1; shift ;;
esac
case " $* " in *' -h '* | *' --help '*) usage; exit 0 ;; esac
[ -r "$workload" ] || { echo "demo.sh: $workload: no such file" >&2; exit 2; }
"$project/scripts/setup.sh"
python=$project/.venv/bin/python
# Before any node is started: does client.py take these options?
PYTHONPATH=$project "$python" -c '
import sys
from paxoskv.client.arguments import parse
from paxoskv.client.output import Output
parse(["run", *sys.argv[1:]], Output("demo.sh"))' "$workload" "$@"

run=$(mktemp -d)
cluster=$run/cluster.json
stop() {
    "$project/scripts/cluster.sh" stop --cluster "$cluster" --data "$run/data" || true
    rm -rf "$run"
}
trap stop EXIT
"$python" "$project/scripts/make_cluster.py" --name demo >"$cluster"

echo "== five nodes start"
"$project/scripts/cluster.sh" start --cluster "$cluster" --data "$run/data"

echo "== two client processes run $(basename "$workload") through Paxos, round-robin over the nodes"
"$python" "$project/client.py" run "$workload" --cluster "$cluster" --out "$run/out" "$@"

echo "== the five stores, read from each node over the wire"
"$python" "$project/scripts/compare_stores.py" --cluster "$cluster"

case $("$python" "$project/tools/compile.py" --background) in
*'being compiled'*) echo "== the nodes stop; the busiest modules are still compiled in the background, for about a minute" ;;
esac
