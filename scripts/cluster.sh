#!/usr/bin/env bash
# Control the nodes of a cluster on this machine.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/cluster.sh COMMAND [ID] [--cluster FILE] [--data DIR]

  start          start all nodes; returns when the cluster answers (the first start makes the data directories)
  stop           stop all nodes: they finish what they have begun
  restart        stop, then start
  rolling        stop and start one node after the other, each when all others answer: nothing is interrupted
  status         what each node says of itself
  start ID       start one node, and wait until it answers
  stop ID        stop one node
  kill ID        end one node at once, as a crash would (kill -9)
  pause ID       stop one node's process where it stands (SIGSTOP)
  resume ID      let it go on (SIGCONT)

  --cluster FILE the cluster (default: cluster.json)
  --data DIR     data directories, logs and process ids (default: what the cluster's file says)

Exit codes: 0 done; 1 a node did not come up or did not stop; 2 usage, or a bad cluster file.
END
}

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || { echo "cluster.sh: no python3; scripts/demo.sh sets one up" >&2; exit 2; }

command='' id='' file=$project/cluster.json data=''
while [ $# -gt 0 ]; do
    case $1 in
    --cluster | --data)
        [ $# -ge 2 ] || { echo "cluster.sh: $1 needs a value" >&2; exit 2; }
        if [ "$1" = --cluster ]; then file=$2; else data=$2; fi
        shift
        ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "cluster.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
    *) if [ -z "$command" ]; then command=$1; elif [ -z "$id" ]; then id=$1; else usage >&2; exit 2; fi ;;
    esac
    shift
done

# The file is read and checked by the same code as the nodes': first the data directory, then the ids.
if ! settings=$(PYTHONPATH=$project "$python" -c '
import sys
from paxoskv import config
try:
    settings = config.load(sys.argv[1])
except config.ClusterError as error:
    sys.exit(f"cluster.sh: {error}")
print(config.data_directory(None, settings, sys.argv[1]), settings.data, settings.digest, *[node.id for node in settings.nodes], sep="\n")' "$file"); then
    exit 2
fi
mapfile -t lines <<<"$settings"
ids=("${lines[@]:3}")
if [ -z "$data" ]; then
    data=${lines[0]}
    for node in "${ids[@]}"; do # where it was looked for once: never make a second cluster beside it
        if grep -qs "${lines[2]}" "${lines[1]}/node-$node/identity.json" && [ ! -d "$data/node-$node" ]; then
            echo "cluster.sh: ${lines[1]}/node-$node is here, but $file has its data in $data: move it, or give --data ${lines[1]}" >&2
            exit 2
        fi
    done
fi
if [ -n "$id" ] && ! printf '%s\n' "${ids[@]}" | grep -qx -- "$id"; then
    echo "cluster.sh: $file has no node $id (it has ${ids[*]})" >&2
    exit 2
fi

client() { "$python" "$project/client.py" "$@" --cluster "$file"; }

# The process id of a node that runs, or nothing. A number left over from an earlier boot may be another process by now.
pid_of() {
    local pid
    pid=$(cat "$data/node-$1.pid" 2>/dev/null) || return 0
    if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "server.py --id $1 "; then echo "$pid"; fi
}

launch() { # ID [--init]
    local node=$1
    shift
    if [ -n "$(pid_of "$node")" ]; then
        echo "node $node runs already"
        return
    fi
    mkdir -p "$data"
    # Each node stays on one processor: left to itself the kernel gathers them, for they wake one another.
    setsid "$python" "$project/server.py" --id "$node" --cluster "$file" --data "$data" --cpu "$node" "$@" \
        </dev/null >>"$data/node-$node.log" 2>&1 &
    echo $! >"$data/node-$node.pid"
    # A child is this script until it has become the server: pid_of would not know it yet.
    while kill -0 $! 2>/dev/null && [ -z "$(pid_of "$node")" ]; do sleep 0.01; done
}

# Wait until these nodes run and take commands; 30 seconds at most.
await() {
    local deadline=$((SECONDS + 30)) node answer
    while :; do
        for node in "$@"; do
            if [ -z "$(pid_of "$node")" ]; then
                echo "cluster.sh: node $node did not come up; the end of $data/node-$node.log:" >&2
                tail -n 10 "$data/node-$node.log" >&2
                return 1
            fi
        done
        answer=$(client status -o json 2>/dev/null || true)
        if "$python" -c '
import json, sys
ready = {node["node"] for node in json.loads(sys.argv[1] or "[]") if node.get("ready")}
sys.exit(not ready >= set(map(int, sys.argv[2:])))' "$answer" "$@"; then
            return
        fi
        if [ $SECONDS -ge $deadline ]; then
            echo "cluster.sh: no answer within 30 s; what the nodes say (logs: $data/node-*.log):" >&2
            client status >&2 || true
            return 1
        fi
        sleep 0.1
    done
}

end() { # SIGNAL ID...: signal them all, then wait until they are gone
    local signal=$1 node pid deadline=$((SECONDS + 15)) failed=0
    shift
    for node in "$@"; do
        pid=$(pid_of "$node")
        if [ -n "$pid" ]; then
            kill -CONT "$pid" 2>/dev/null || true
            kill "-$signal" "$pid" 2>/dev/null || true
        fi
    done
    for node in "$@"; do
        while [ -n "$(pid_of "$node")" ]; do
            if [ $SECONDS -ge $deadline ]; then
                echo "cluster.sh: node $node (process $(pid_of "$node")) does not stop; use: kill $node" >&2
                failed=1
                break
            fi
            sleep 0.05
        done
        [ $failed = 1 ] || rm -f "$data/node-$node.pid"
    done
    return $failed
}

start_all() {
    local node init=--init
    for node in "${ids[@]}"; do
        if [ -d "$data/node-$node" ]; then init=; fi
    done
    for node in "${ids[@]}"; do launch "$node" $init; done
    await "${ids[@]}"
    echo "${#ids[@]} nodes answer"
}

rolling() { # ID...: one after the other, each when all nodes take commands
    local node
    for node in "${ids[@]}"; do
        [ -n "$(pid_of "$node")" ] || { echo "cluster.sh: node $node does not run; start it first" >&2; exit 1; }
    done
    for node in "$@"; do
        await "${ids[@]}"
        end TERM "$node"
        launch "$node"
        await "$node"
        echo "node $node is back"
    done
    await "${ids[@]}"
}

one() { # the process id of the one node that a command is about
    [ -n "$id" ] || { echo "cluster.sh: $command needs a node's id (one of ${ids[*]})" >&2; exit 2; }
    local pid
    pid=$(pid_of "$id")
    [ -n "$pid" ] || { echo "cluster.sh: node $id does not run" >&2; exit 1; }
    echo "$pid"
}

case $command in
start) if [ -n "$id" ]; then launch "$id" && await "$id"; else start_all; fi ;;
stop)
    running=$(for node in ${id:-"${ids[@]}"}; do pid_of "$node"; done)
    [ -n "$running" ] || echo "no node runs whose data is in $data"
    end TERM ${id:-"${ids[@]}"}
    ;;
restart) end TERM ${id:-"${ids[@]}"} && if [ -n "$id" ]; then launch "$id" && await "$id"; else start_all; fi ;;
rolling) rolling ${id:-"${ids[@]}"} ;;
status) client status ;;
kill) one >/dev/null && end KILL "$id" ;;
pause) pid=$(one) && kill -STOP "$pid" ;;
resume) pid=$(one) && kill -CONT "$pid" ;;
'') usage >&2; exit 2 ;;
*) echo "cluster.sh: unknown command $command (see --help)" >&2; exit 2 ;;
esac
